"""KGRec in the places that other code has for it; each integration imports its framework alone."""

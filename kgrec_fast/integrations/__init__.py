"""In place of what users have: models, layers and functions of other packages."""

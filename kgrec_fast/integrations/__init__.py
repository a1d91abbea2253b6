"""kgrec_fast inside other code: one module for each framework or package, imported by name.

Nothing is imported here, so that none of them is needed for the others.
"""

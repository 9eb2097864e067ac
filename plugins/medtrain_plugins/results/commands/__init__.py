"""Commands that work on trained runs and on weights."""

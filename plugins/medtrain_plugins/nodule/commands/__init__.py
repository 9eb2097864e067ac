"""Commands for nodules."""

"""Commands for sign data."""

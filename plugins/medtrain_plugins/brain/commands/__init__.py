"""Commands for brain images."""

"""Commands for mammography."""

"""The training of one split."""

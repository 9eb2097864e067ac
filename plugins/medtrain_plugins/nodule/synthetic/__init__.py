"""Synthetic chest CT with nodules, for demos and tests."""

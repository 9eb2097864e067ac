"""Readers of scan files: each gives the same `Volume` for the same scan."""

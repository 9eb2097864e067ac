"""Synthetic scans with nodules."""

"""Synthetic cohorts in real layouts."""

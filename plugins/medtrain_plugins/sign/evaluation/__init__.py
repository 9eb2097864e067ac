"""Metrics and plots of signs."""

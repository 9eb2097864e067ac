"""Metrics and plots for brain images."""

"""Metrics, strata and plots of risk models."""

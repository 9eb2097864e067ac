"""Evaluation of risk models: survival metrics, bootstrap, strata, comparisons and figures."""

"""Synthetic cohorts of mammograms in the EMBED layout."""

"""Metrics of the four tasks, and the figures of their reports."""

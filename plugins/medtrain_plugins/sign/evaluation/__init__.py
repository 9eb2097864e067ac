"""Metrics of sign recognition, and the figures of its reports."""

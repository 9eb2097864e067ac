"""Splits of data: who is in which group."""

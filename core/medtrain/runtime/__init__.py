"""Processes, devices and randomness."""

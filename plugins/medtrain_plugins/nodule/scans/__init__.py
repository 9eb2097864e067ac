"""Scans as volumes: reading, resampling, intensities."""

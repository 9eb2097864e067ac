"""Scans as volumes: finding, reading, resampling, intensities, lungs, and the manifest of prepared scans."""

"""From scans on disk to prepared scans with a manifest: checks, resampling, splits, and figures of a scan."""

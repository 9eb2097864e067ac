"""From scans on disk to a checked, prepared manifest."""

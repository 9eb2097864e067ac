"""From prepared scans to samples: patches, how they are drawn and augmented, targets, and the groups of a run."""

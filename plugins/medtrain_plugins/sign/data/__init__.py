"""From clips of landmarks to samples."""

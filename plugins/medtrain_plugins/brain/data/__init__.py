"""From BIDS and CAPS folders to samples."""

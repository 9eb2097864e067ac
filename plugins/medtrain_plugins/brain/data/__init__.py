"""From BIDS and CAPS folders to samples: files, tables, volumes, transforms, caches, datasets."""

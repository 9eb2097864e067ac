"""From recordings and keypoints to samples: formats, memory-mapped frames, sampling, augmentation, datasets."""

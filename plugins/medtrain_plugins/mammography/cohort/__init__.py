"""From cohort tables to samples: layouts, checks, exams, labels, images, augmentation, datasets."""

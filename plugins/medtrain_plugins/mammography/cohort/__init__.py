"""From cohort tables to samples."""

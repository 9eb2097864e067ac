"""What comes after a training: evaluations, comparisons, reports, exports."""

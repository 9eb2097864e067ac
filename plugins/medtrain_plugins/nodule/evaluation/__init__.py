"""How good detections are: matching, FROC curves, accuracy, malignancy, reports, and comparisons of runs."""

"""What the detections of lung nodules are worth: FROC curves, centres, sizes, masks, malignancy, calibration."""

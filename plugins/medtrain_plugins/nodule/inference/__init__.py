"""From a trained detector to detections: sliding window, test-time augmentation, peaks, calibration, files."""

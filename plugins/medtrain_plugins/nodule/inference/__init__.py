"""From a trained detector to detections in a scan."""

"""A family room for all: ONNX files and calibration."""

"""Metrics of masks, classes and boxes, on arrays."""

"""Metrics of masks, classes and boxes."""

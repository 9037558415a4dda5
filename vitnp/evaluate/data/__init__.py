"""Readers of data sets: photographs with masks, label maps or boxes."""

"""Photographs for training: packs, duplicates, sampling, crops."""

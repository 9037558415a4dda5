"""Benchmarks of mask quality on photographs with true masks."""

"""Benchmarks of time and memory: one photograph, large photographs, collections."""

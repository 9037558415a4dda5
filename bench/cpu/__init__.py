"""Benchmarks of the CPU kernels against other libraries."""

"""Kernels for the CPU, compiled by numba; :mod:`vitnp.kernels.cpu.operations` is what callers get."""

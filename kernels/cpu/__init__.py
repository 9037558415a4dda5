"""Kernels for the CPU, compiled by numba; :mod:`vitnp.kernels.cpu.dispatch` is what callers get."""

"""Kernels for NVIDIA GPUs, written by hand for CuPy; :mod:`vitnp.kernels.cuda.operations` is what callers get."""

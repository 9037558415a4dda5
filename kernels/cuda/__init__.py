"""Kernels for NVIDIA GPUs, written by hand for CuPy; :mod:`vitnp.kernels.cuda.dispatch` is what callers get."""

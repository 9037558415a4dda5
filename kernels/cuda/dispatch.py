"""Operations for CuPy arrays: the names of :mod:`vitnp.kernels.reference`, in kernels of the .cu files beside this.

Importing this needs no CuPy. An operation of the reference that has no kernel here isn't offered: it would want NumPy
arrays.
"""

from __future__ import annotations

import importlib

from vitnp.kernels import reference

# Which module holds what.
HOMES = {
    "transformer": (
        "linear",
        "pack_linear",
        "layernorm",
        "gelu",
        "swiglu",
        "softmax",
        "patch_embedding",
        "temporary",
        "precisions",
        "products",
    ),
    "attention": ("attention", "attention_row", "KVCache"),
    "kmeans": ("kmeans_step", "kmeans_assign", "kmeans_closer"),
    "similarity": ("similarity", "similarity_top", "normalize_rows"),
    "crf": ("permutohedral_lattice", "lattice_filter", "normalize_lattice", "mean_field"),
    "bilateral_solver": ("BilateralGrid", "bilateral_solver"),
    "image": (
        "resize",
        "normalize",
        "bilinear",
        "fixed_point",
        "guided_filter",
        "guided_coefficients",
        "guided_upsample",
        "clean",
    ),
    "device": ("wait", "free_bytes", "release", "out_of_memory"),
}
_HOME = {name: module for module, names in HOMES.items() for name in names}

# Tokens that one thread takes through a layer at a time: all of an image, since the GPU shares out the work itself.
BLOCK = None


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"vitnp.kernels.cuda.{_HOME[name]}"), name)
    if hasattr(reference, name):
        found.__doc__ = getattr(reference, name).__doc__
    globals()[name] = found
    return found

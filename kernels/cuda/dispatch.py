"""Operations for CuPy arrays: the names of :mod:`vitnp.kernels.reference`, by the kernels in ``src/``.

Importing this module does not import CuPy. Operations of the reference that have no kernel here are not available,
because they take NumPy arrays only.
"""

from __future__ import annotations

import importlib
from typing import Any

from vitnp.kernels import reference

# Operations by module.
MODULES = {
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
    "attention": ("attention", "attention_row", "attend", "attend_fused", "rotate"),
    "kmeans": ("kmeans_step", "kmeans_assign", "kmeans_closer"),
    "image_level": ("image_levels",),
    "similarity": ("similarity", "similarity_top", "normalize_rows"),
    "dense_crf": ("dense_crf",),
    "crf": ("permutohedral_lattice", "lattice_filter", "normalize_lattice", "mean_field"),
    "bilateral_grid": ("BilateralGrid",),
    "bilateral_solver": ("bilateral_solver",),
    "image": (
        "resize",
        "normalize",
        "bilinear",
        "fixed_point",
        "clean",
    ),
    "guided": ("guided_filter", "guided_coefficients", "guided_upsample"),
    "graphs": ("GraphCache",),
    "device": (
        "wait",
        "mark",
        "seconds_between",
        "hand_over",
        "own_stream",
        "free_bytes",
        "total_bytes",
        "release",
        "out_of_memory",
    ),
}
_MODULE_OF = {name: module for module, names in MODULES.items() for name in names}

# Tokens that one thread takes through a layer at a time; None means all tokens of an image, because the GPU itself
# distributes the work.
BLOCK = None


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    operation = getattr(importlib.import_module(f"vitnp.kernels.cuda.{_MODULE_OF[name]}"), name)
    if name in reference.__all__:
        operation.__doc__ = getattr(reference, name).__doc__
    globals()[name] = operation
    return operation

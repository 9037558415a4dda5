"""Operations for the CPU, compiled by numba: the names of :mod:`vitnp.kernels.reference`, several times as fast.

Arrays other than float32, and operations that do not need to be fast, use the reference. A module is imported, and its
kernels compiled or loaded from disk, when one of its operations is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from vitnp.kernels import reference
from vitnp.kernels.threads.fork import importing

# Operations by module.
MODULES = {
    "linear": ("linear", "pack_linear"),
    "int8": ("layernorm_int8", "quantize_rows"),
    "layernorm": ("layernorm",),
    "activations": ("gelu", "swiglu"),
    "attention": ("attention", "KVCache"),
    "patch_embed": ("patch_embedding",),
    "kmeans": ("kmeans_step", "kmeans_assign"),
    "kmeans_closer": ("kmeans_closer",),
    "kmeans_plusplus": ("kmeans_plusplus",),
    "lloyd": ("kmeans_moves", "kmeans_move"),
    "bilateral_grid": ("BilateralGrid",),
    "bilateral_solver": ("bilateral_solver",),
    "similarity": ("similarity", "similarity_top"),
    "codegen.workspace": ("temporary",),
    "foreground": ("foreground_sweeps",),
    "guided": ("box_mean", "linear_in_color"),
    "resize": ("resize",),
    "overlay": ("paint_overlay",),
    "dense_crf": ("dense_crf",),
    "lattice": ("permutohedral_lattice", "lattice_filter", "normalize_lattice", "mean_field"),
}
_MODULE_OF = {name: module for module, names in MODULES.items() for name in names}

# Tokens that one thread takes through a layer at a time: few enough for the intermediate results to stay in its caches.
BLOCK = 256


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        with importing:
            # From now on, teams of threads wait without sleeping.
            importlib.import_module("vitnp.kernels.cpu.codegen.barrier")
            operation = getattr(importlib.import_module(f"vitnp.kernels.cpu.{_MODULE_OF[name]}"), name)
        operation.__doc__ = getattr(reference, name).__doc__
    elif name in reference.__all__:
        operation = getattr(reference, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = operation
    return operation


def precisions() -> tuple[str, ...]:
    """Return the precisions that this processor supports in linear layers and attention."""
    with importing:
        from vitnp.kernels.cpu.codegen.int8 import HAS_INT8
        from vitnp.kernels.cpu.codegen.simd import HAS_BF16

    return "fp32", *(["bf16"] if HAS_BF16 else []), *(["int8"] if HAS_INT8 else [])

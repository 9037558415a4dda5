"""Operations for the CPU, compiled by numba: the names of :mod:`vitnp.kernels.reference`, for float32, several times as fast.

Anything that isn't float32, and any operation that needs no speed, is the reference's own. A module is imported, and thereby
compiled or taken from the disk, when one of its operations is first asked for.
"""

from __future__ import annotations

import importlib

from vitnp.kernels import reference

# Which module holds what.
HOMES = {
    "linear": ("linear", "pack_linear"),
    "layernorm": ("layernorm",),
    "activations": ("gelu", "swiglu"),
    "attention": ("attention", "KVCache"),
    "patch_embed": ("patch_embedding",),
    "kmeans": ("kmeans_step", "kmeans_assign", "kmeans_closer"),
    "lloyd": ("kmeans_moves", "kmeans_move"),
    "similarity": ("similarity", "similarity_top"),
    "codegen.workspace": ("temporary",),
    "lattice": ("permutohedral_lattice", "lattice_filter", "normalize_lattice", "mean_field"),
}
_HOME = {name: module for module, names in HOMES.items() for name in names}

# Tokens that one thread takes through a layer at a time: what it works on stays in its caches.
BLOCK = 128


def __getattr__(name: str) -> object:
    if name in _HOME:
        importlib.import_module("vitnp.kernels.cpu.codegen.barrier")  # so that threads meet without going to sleep
        found = getattr(importlib.import_module(f"vitnp.kernels.cpu.{_HOME[name]}"), name)
        found.__doc__ = getattr(reference, name).__doc__
    elif hasattr(reference, name) and not name.startswith("_"):
        found = getattr(reference, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def precisions() -> tuple[str, ...]:
    """Of linear layers and attention, those that this processor has."""
    from vitnp.kernels.cpu.codegen.simd import HAS_BF16

    return ("fp32", "bf16") if HAS_BF16 else ("fp32",)

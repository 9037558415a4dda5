"""Cosine similarity on the GPU: the kernels of ``similarity.cu`` under the names of :mod:`vitnp.kernels.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import tiles
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy

if TYPE_CHECKING:
    import cupy

_ENTRY_BYTES = 8  # a value and its index


def similarity(x: cupy.ndarray, y: cupy.ndarray) -> cupy.ndarray:
    cupy = require_cupy()
    plan = tiles.plan(x.shape[1], len(y), x.dtype == np.float16)
    out = cupy.empty((len(x), len(y)), np.float32)
    _launch("similarity", plan, x, y, out)
    return out


def similarity_top(
    x: cupy.ndarray, y: cupy.ndarray, count: int, *, own: int | None = None
) -> tuple[cupy.ndarray, cupy.ndarray]:
    cupy = require_cupy()
    most = len(y) - (own is not None)
    if not 1 <= count <= most:
        raise ValueError(f"count must be between 1 and {most}, got {count}")
    lists = _ENTRY_BYTES * tiles.THREADS * count
    plan = tiles.plan(x.shape[1], len(y), x.dtype == np.float16, extra=lists, define="LISTS_SHARED")
    values, indices = cupy.empty((len(x), count), np.float32), cupy.empty((len(x), count), np.int64)
    workspace = None if plan.extra else cupy.empty(plan.blocks(len(x)) * lists, np.uint8)
    first = np.int64(-1 if own is None else own)
    _launch("similarity_top", plan, x, y, np.int32(count), first, values, indices, workspace)
    return values, indices


def normalize_rows(x: cupy.ndarray) -> cupy.ndarray:
    cupy = require_cupy()
    wide = x.astype(np.float32)
    length = cupy.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    return (wide / cupy.where(length > 0, length, np.float32(1))).astype(x.dtype)


def _launch(name: str, plan: tiles.Plan, x: cupy.ndarray, y: cupy.ndarray, *arguments: object) -> None:
    x = contiguous(x)
    unit, _ = tiles.prepare("similarity", y, plan, normalize=True)
    common = (x, unit, np.int64(len(x)), np.int32(x.shape[1]), np.int32(len(y)))
    function = kernel("similarity", name, *plan.options, shared=plan.shared)
    function((plan.blocks(len(x)),), (tiles.THREADS,), (*common, *arguments), shared_mem=plan.shared)

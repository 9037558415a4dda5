"""k-means on the GPU: the kernels of ``kmeans.cu`` under the names of :mod:`vitnp.kernels.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import tiles
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy
from vitnp.kernels.reference import Step

if TYPE_CHECKING:
    import cupy

# Largest number of clusters that the kernels support.
MOST_CLUSTERS = 256


def kmeans_step(
    x: cupy.ndarray,
    centroids: cupy.ndarray,
    *,
    metric: str = "cosine",
    shift: cupy.ndarray | None = None,
    block: int | None = None,
) -> Step:
    cupy = require_cupy()
    if block is not None and block < len(x):
        parts = [
            kmeans_step(x[first : first + block], centroids, metric=metric, shift=shift)
            for first in range(0, len(x), block)
        ]
        labels, losses, sums, counts, inertia = zip(*parts)
        labels, losses, sums, inertia = map(cupy.concatenate, (labels, losses, sums, inertia))
        return Step(labels, losses, sums, sum(counts[1:], counts[0]), inertia)
    (n, width), columns = x.shape, len(centroids)
    size = columns * width
    plan = tiles.plan(width, columns, x.dtype == np.float16, extra=4 * size, define="SUMS_SHARED")
    launch = _Launch(plan, x, centroids, metric, shift)
    labels, losses = cupy.empty(n, np.int32), cupy.empty(n, np.float32)
    blocks = plan.blocks(n)
    block_sums, block_counts = cupy.empty((blocks, size), np.float32), cupy.empty((blocks, columns), np.int32)
    block_loss = cupy.empty(blocks, np.float64)
    launch("kmeans_step", labels, losses, block_sums, block_counts, block_loss)

    sums, counts, inertia = (
        cupy.empty((1, columns, width), np.float64),
        cupy.empty(columns, np.int64),
        cupy.empty(1, np.float64),
    )
    totals = (
        block_sums,
        block_counts,
        block_loss,
        np.int32(blocks),
        np.int32(size),
        np.int32(columns),
        sums,
        counts,
        inertia,
    )
    kernel("kmeans", "reduce_blocks", *plan.options)((-(-(size + columns + 1) // 128),), (128,), totals)
    return Step(labels, losses, sums, counts, inertia)


def kmeans_assign(
    x: cupy.ndarray, centroids: cupy.ndarray, *, metric: str = "cosine", shift: cupy.ndarray | None = None
) -> tuple[cupy.ndarray, cupy.ndarray]:
    cupy = require_cupy()
    launch = _Launch(_plan(x, centroids), x, centroids, metric, shift)
    labels, losses = cupy.empty(len(x), np.int32), cupy.empty(len(x), np.float32)
    launch("kmeans_assign", labels, losses)
    return labels, losses


def kmeans_closer(
    x: cupy.ndarray,
    candidates: cupy.ndarray,
    nearest: cupy.ndarray | None,
    *,
    metric: str = "cosine",
    shift: cupy.ndarray | None = None,
) -> cupy.ndarray:
    cupy = require_cupy()
    launch = _Launch(_plan(x, candidates), x, candidates, metric, shift)
    losses = cupy.empty((len(x), len(candidates)), np.float32)
    launch("kmeans_closer", None if nearest is None else contiguous(nearest, np.float32), losses)
    return losses


def _plan(x: cupy.ndarray, columns: cupy.ndarray) -> tiles.Plan:
    return tiles.plan(x.shape[1], len(columns), x.dtype == np.float16)


class _Launch:
    """Launcher of the three kernels, which have their first arguments in common."""

    def __init__(
        self, plan: tiles.Plan, x: cupy.ndarray, centroids: cupy.ndarray, metric: str, shift: cupy.ndarray | None
    ):
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric must be cosine or euclidean, got {metric!r}")
        if not 1 <= len(centroids) <= MOST_CLUSTERS:
            raise ValueError(f"the number of centroids must be between 1 and {MOST_CLUSTERS}, got {len(centroids)}")
        self.plan, self.x = plan, contiguous(x)
        cosine = metric == "cosine"
        self.shift = None if cosine or shift is None else contiguous(shift, np.float32)
        y, constants = tiles.prepare("kmeans", centroids, plan, shift=self.shift)
        sizes = (np.int64(len(x)), np.int32(x.shape[1]), np.int32(len(centroids)), np.int32(cosine))
        self.common = (self.x, y, constants, self.shift, *sizes)

    def __call__(self, name: str, *arguments: object) -> None:
        function = kernel("kmeans", name, *self.plan.options, shared=self.plan.shared)
        function(
            (self.plan.blocks(len(self.x)),), (tiles.THREADS,), (*self.common, *arguments), shared_mem=self.plan.shared
        )

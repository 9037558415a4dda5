"""The image level of a batch on the GPU: the kernels of ``image_level.cu`` under the name of the reference.

A call makes one upload and two launches, and reads nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy, shared_memory
from vitnp.kernels.reference import ImageLevelRule, ImageLevels, n_candidates, n_draws

if TYPE_CHECKING:
    import cupy

# As in the source file.
THREADS = 256
MOST_CLUSTERS = 256
# Bytes of static shared memory, at most.
_STATIC = 17 * 1024
# Bytes of a block's centroids above which only one block would fit into a multiprocessor's shared memory.
_MOST_SHARED = 96 * 1024


def image_levels(
    keys: cupy.ndarray,
    attention: cupy.ndarray,
    grids: Sequence[tuple[int, int]],
    draws: np.ndarray,
    rule: ImageLevelRule,
) -> ImageLevels:
    cupy = require_cupy()
    if not rule.clusters or not 1 <= min(rule.clusters) <= max(rule.clusters) <= MOST_CLUSTERS:
        raise ValueError(f"numbers of clusters must be between 1 and {MOST_CLUSTERS}, got {rule.clusters}")
    keys, attention = contiguous(keys, np.float32), contiguous(attention, np.float32)
    total, width = keys.shape
    batch, n_numbers, starts = len(grids), len(rule.clusters), rule.starts
    photographs, numbers, uniforms = _upload(cupy, grids, draws, rule)
    columns = max(n_clusters + n_candidates(n_clusters) - 1 for n_clusters in rule.clusters)
    options, shared = _plan(width, columns)
    jobs, rows = batch * n_numbers * starts, total * n_numbers * starts

    scale, losses, scores = (
        cupy.empty(rows, np.float32),
        cupy.empty(rows, np.float32),
        cupy.empty(rows * columns, np.float32),
    )
    labels, order = cupy.empty(rows, np.int32), cupy.empty(rows, np.int32)
    centroids = None if shared else cupy.empty(jobs * columns * width, np.float32)
    sums = cupy.empty(jobs * columns * width, np.float64)
    soft, hard = cupy.empty(rows, np.float64), cupy.empty(rows, np.uint8)
    inertia, finite = cupy.empty(jobs, np.float64), cupy.empty(jobs, np.int32)
    sizes = (np.int32(width), np.int32(n_numbers), np.int32(starts))
    texture = np.int32(rule.texture)
    constants = (
        np.int32(draws.shape[1]),
        np.int32(columns),
        np.int32(rule.max_iterations),
        np.float64(rule.attention_percentile),
        np.float64(rule.threshold),
        np.float64(rule.temperature),
        texture,
    )
    workspace = (scale, losses, scores, labels, order, centroids, sums, soft, hard, inertia, finite)
    kernel("image_level", "image_level_start", *options, shared=shared)(
        (jobs,),
        (THREADS,),
        (keys, attention, photographs, numbers, uniforms, *sizes, *constants, *workspace),
        shared_mem=shared,
    )
    answers = cupy.empty(total, np.float32), cupy.empty(total, np.float32), cupy.empty((batch, 3), np.float64)
    kernel("image_level", "image_level_answer", *options)(
        (batch,),
        (THREADS,),
        (keys, photographs, numbers, *sizes, texture, scale, soft, hard, inertia, finite, *answers),
    )
    return ImageLevels(*answers)


def _upload(
    cupy: ModuleType, grids: Sequence[tuple[int, int]], draws: np.ndarray, rule: ImageLevelRule
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Copy the three tables of a batch to the device in one piece: int64 and float64 have the same size."""
    sizes = np.array([rows * columns for rows, columns in grids], np.int64)
    photographs = np.column_stack([sizes.cumsum() - sizes, sizes, np.array(grids, np.int64)])
    counts = [rule.starts * n_draws(n_clusters) for n_clusters in rule.clusters]
    first_draws = np.cumsum([0, *counts[:-1]])
    candidates = [n_candidates(n_clusters) for n_clusters in rule.clusters]
    numbers = np.column_stack([np.array(rule.clusters, np.int64), candidates, first_draws]).astype(np.int64)
    if draws.shape != (len(grids), sum(counts)):
        raise ValueError(f"draws must have the shape {(len(grids), sum(counts))}, got {draws.shape}")
    parts = [part.ravel() for part in (photographs.view(np.float64), numbers.view(np.float64), draws)]
    there = cupy.asarray(np.concatenate(parts))
    first, second = parts[0].size, parts[0].size + parts[1].size
    return there[:first].view(np.int64), there[first:second].view(np.int64), there[second:]


def _plan(width: int, columns: int) -> tuple[tuple[str, ...], int]:
    """Return the compiler options for a width and a number of centroids and candidates, and bytes of shared memory."""
    vector = f"-DVECTOR={4 if width % 4 == 0 else 1}"
    needed = 4 * width * columns
    device = require_cupy().cuda.Device().id
    if needed > min(shared_memory(device) - _STATIC, _MOST_SHARED):
        return (vector,), 0
    return (vector, "-DCENTROIDS_SHARED"), needed

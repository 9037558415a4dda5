"""Launch every kernel on small irregular sizes, with a separate allocation per array, for compute-sanitizer.

``python -m bench.gpu.small``
"""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

# Rows, clusters, width: widths with and without tensor cores, and all sizes of tiles.
SHAPES = ((331, 8, 64), (150, 27, 384), (133, 70, 64), (77, 256, 64), (70, 9, 51))
WIDTHS = (34, 384)


def main() -> int:
    """Launch all kernels without checking results, which the tests do."""
    cupy = require_cupy()
    # Without a memory pool, an access out of bounds of an array is out of bounds of its allocation too.
    cupy.cuda.set_allocator(None)
    launch(cupy)
    cupy.cuda.Device().synchronize()
    print("every kernel ran")
    return 0


def launch(cupy: ModuleType) -> None:
    """Launch all kernels."""
    for dtype in (np.float32, np.float16):
        _rows(cupy, dtype)
        _layers(cupy, dtype)
    _bfloat16(cupy)
    _image_level(cupy)
    _pictures(cupy)
    _refinement(cupy)


def random(cupy: ModuleType, seed: int, *shape: int, dtype: type = np.float32) -> object:
    """Return normally distributed numbers on the device."""
    return cupy.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def _rows(cupy: ModuleType, dtype: type) -> None:
    from vitnp.kernels.cuda import dispatch

    for n, clusters, width in SHAPES:
        x, centroids = random(cupy, 0, n, width, dtype=dtype), random(cupy, 1, clusters, width)
        for metric in ("cosine", "euclidean"):
            shift = random(cupy, 2, width) if metric == "euclidean" else None
            dispatch.kmeans_step(x, centroids, metric=metric, shift=shift)
            dispatch.kmeans_assign(x, centroids, metric=metric, shift=shift)
        dispatch.kmeans_closer(x, centroids, None)
        dispatch.kmeans_closer(x, centroids, random(cupy, 3, n) ** 2)
        y = random(cupy, 4, clusters, width, dtype=dtype)
        dispatch.similarity(x, y)
        dispatch.similarity_top(x, y, 5)


def _layers(cupy: ModuleType, dtype: type) -> None:
    from vitnp.kernels.cuda import attention_wgmma, dispatch, transformer

    for width in WIDTHS:
        x, residual = (random(cupy, seed, 2, 7, width, dtype=dtype) for seed in (5, 6))
        weight, bias, scale = (random(cupy, seed, width, dtype=dtype) for seed in (7, 8, 9))
        dispatch.layernorm(x, weight, bias, 1e-6)
        dispatch.gelu(x)
        dispatch.swiglu(x)
        # The epilogue without the product, which is cuBLAS's and slow under a sanitizer.
        transformer.epilogue(x, bias, True, scale, residual, None)
    for heads, size, rows, tokens in ((2, 64, 130, 201), (2, 24, 6, 70)):
        query = random(cupy, 11, 2, rows, heads * size, dtype=dtype)
        key, value = (random(cupy, seed, 2, tokens, heads * size, dtype=dtype) for seed in (12, 13))
        dispatch.attention(query, key, value, heads)
        rotation = random(cupy, 15, tokens, size)  # rotary position embeddings
        dispatch.attention(query, key, value, heads, rotation)
        with attention_wgmma.switched_off():
            dispatch.attention(query, key, value, heads)
            dispatch.attention(query, key, value, heads, rotation)


def _bfloat16(cupy: ModuleType) -> None:
    from vitnp.kernels.cuda import bfloat16

    for size in (4, 131):  # four at a time, and a rest
        bfloat16.lengthen(bfloat16.shorten(random(cupy, 16, size)))


def _image_level(cupy: ModuleType) -> None:
    from vitnp.method.image_batch import image_levels
    from vitnp.method.image_level import ImageLevelConfig

    grids = [(7, 9), (2, 1), (16, 18)]  # the last has more rows than a block has threads
    for width in (16, 13):
        keys = [random(cupy, seed, rows * columns, width) for seed, (rows, columns) in enumerate(grids)]
        attention = [cupy.ones(len(each), np.float32) for each in keys]
        seeds = [(seed,) for seed in range(len(grids))]
        for texture in (False, True):
            image_levels(keys, attention, grids, seeds, ImageLevelConfig(), texture=texture)


def _pictures(cupy: ModuleType) -> None:
    from vitnp.kernels.cuda import guided, image

    from vitnp.method.cleaning import CleaningConfig

    rng = np.random.default_rng(14)
    rgb = cupy.asarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    small = image.resize(rgb, (11, 20))
    image.resize(rgb, (60, 71))
    for dtype in (np.float32, np.float16):
        image.normalize(small, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), dtype)
    soft = cupy.asarray(rng.random((11, 20), dtype=np.float32))
    image.fixed_point(image.bilinear(soft, (37, 53)))
    guided.guided_filter(soft, small, radius=3, eps=1e-3)
    guided.guided_upsample(soft, small, rgb)
    both = cupy.stack([rgb, rgb[::-1]])
    guided.guided_upsample(cupy.stack([soft, soft]), image.resize(both, (11, 20)), both)
    image.clean(soft, *dataclasses.astuple(CleaningConfig()))
    image.clean(cupy.stack([soft, soft[::-1]]), *dataclasses.astuple(CleaningConfig()))


def _refinement(cupy: ModuleType) -> None:
    from vitnp.kernels.cuda import bilateral_solver, crf, dense_crf

    rng = np.random.default_rng(15)
    rgb = cupy.asarray(rng.integers(0, 256, (24, 31, 3), dtype=np.uint8))
    target = cupy.asarray(rng.random((24, 31), dtype=np.float32))
    bilateral_solver.bilateral_solver(target, rgb, sigma_xy=4.0, max_iterations=3)
    both, targets = cupy.stack([rgb, rgb[::-1]]), cupy.stack([target, target[::-1]])
    bilateral_solver.bilateral_solver(targets, both, sigma_xy=4.0, max_iterations=3)
    dense_crf.dense_crf(targets, both, gaussians=[(5.0, 4.0, 5.0), (3.0, 3.0, None)], steps=2)
    lattices = [
        crf.normalize_lattice(crf.permutohedral_lattice(cupy.asarray(rng.random((d, 150), dtype=np.float32) * 3)))
        for d in (2, 5)
    ]
    crf.mean_field(cupy.asarray(rng.random((150, 3), dtype=np.float32)), lattices, [3.0, 5.0], 2)


if __name__ == "__main__":
    sys.exit(main())

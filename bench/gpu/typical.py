"""Launch the two most expensive kernels at the sizes of the benchmark, for a profiler.

``python -m bench.gpu.typical``
"""

from __future__ import annotations

import sys

from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu import attention, kmeans
from bench.gpu.small import random

ROWS, CLUSTERS = 1_000_000, (8, 27)
IMAGES, TOKENS = 16, 3601


def main() -> int:
    """Launch attention as this GPU computes it, and kmeans_step for each dtype and number of clusters."""
    from vitnp.kernels.cuda import dispatch

    cupy = require_cupy()
    width = attention.HEADS * attention.SIZE
    query, key, value = (random(cupy, seed, IMAGES, TOKENS, width).astype("float16") for seed in range(3))
    dispatch.attention(query, key, value, attention.HEADS)
    for dtype in ("fp32", "fp16"):
        x = kmeans.rows_on_device(cupy, ROWS, kmeans.WIDTH, dtype)
        for clusters in CLUSTERS:
            dispatch.kmeans_step(x, x[:clusters].astype("float32"), metric="euclidean")
    cupy.cuda.Device().synchronize()
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())

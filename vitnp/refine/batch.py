"""Refine the scores of several photographs: on a GPU those of a size together, by the launches of a single one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitnp import kernels
from vitnp.io.resample import working_size
from vitnp.refine.refine import WORKING_SIDE, refine

# Pixels at the working size that are refined together: enough to occupy a GPU. They take 600 MB of its memory at most,
# the CRF's lattice: 190 bytes for each of the six corners of a quarter of the pixels.
_MOST_PIXELS = 1 << 21
# Pixels of the photographs themselves.
_MOST_FULL_PIXELS = 1 << 24


def refine_batch(
    scores: Sequence[np.ndarray],
    photographs: Sequence[np.ndarray],
    *,
    method: str = "solver",
    working_side: int = WORKING_SIDE,
) -> list[np.ndarray]:
    """Enlarge the patch scores of several photographs to soft maps, with the bits of :func:`refine` for each of them.

    On a GPU photographs of one size and grid are refined together: as many launches, one copy to the GPU and one back
    for all of them. They are taken by powers of two, so that few shapes occur, each of which is one CUDA graph.

    Parameters
    ----------
    scores : sequence of array, shape (gh, gw), values in 0..1
        All on one device.
    photographs : sequence of uint8 array, shape (H, W, 3)
        In host memory.
    method, working_side
        As for :func:`refine`.

    Returns
    -------
    list of uint16 array, shape (H, W)
        In host memory, in the order given.

    Examples
    --------
    >>> score, rgb = np.array([[0.0, 1.0]]), np.zeros((1, 4, 3), np.uint8)
    >>> [soft.tolist() for soft in refine_batch([score, score], [rgb, rgb], method="none")]
    [[[0, 16384, 49151, 65535]], [[0, 16384, 49151, 65535]]]
    """
    groups: dict[object, list[int]] = {}
    for index, (score, rgb) in enumerate(zip(scores, photographs)):
        groups.setdefault((kernels.device_of(score), score.shape, rgb.shape), []).append(index)
    found: dict[int, np.ndarray] = {}
    for members in groups.values():
        first = members[0]
        together = 1 if kernels.device_of(scores[first]) == "cpu" else _together(photographs[first], working_side)
        while members:
            count = 1 << min(together, len(members)).bit_length() - 1
            now, rest = members[:count], members[count:]
            try:
                maps = _refined([scores[i] for i in now], [photographs[i] for i in now], method, working_side)
            except MemoryError:
                if count == 1:
                    raise
                together = count // 2
                kernels.for_device("cuda").release()
                continue
            found |= zip(now, maps)
            members = rest
    return [found[index] for index in range(len(found))]


def _together(photograph: np.ndarray, working_side: int) -> int:
    """Return how many photographs of this size are refined together at most."""
    height, width, _ = photograph.shape
    pixels = math.prod(working_size(height, width, working_side))
    return max(1, min(_MOST_PIXELS // pixels, _MOST_FULL_PIXELS // (height * width)))


def _refined(
    scores: Sequence[np.ndarray], photographs: Sequence[np.ndarray], method: str, working_side: int
) -> list[np.ndarray]:
    if len(scores) == 1:
        return [kernels.to_host(refine(scores[0], photographs[0], method=method, working_side=working_side))]
    together = kernels.array_module(scores[0]).stack(list(scores))
    return list(kernels.to_host(refine(together, np.stack(photographs), method=method, working_side=working_side)))

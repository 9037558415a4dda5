"""Patch embedding: pixels of a block of patches side by side, then a linear layer."""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.gil import lay_down, take_up
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.workspace import scratch
from vitnp.kernels.cpu.linear import PackedLinear, linear

ROWS = 96


def patch_embedding(
    images: np.ndarray,
    weight: np.ndarray | PackedLinear,
    bias: np.ndarray,
    stride: int,
    *,
    patch: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    if images.dtype != np.float32:
        return reference.patch_embedding(images, weight, bias, stride, patch=patch, start=start, stop=stop)
    patch = patch or weight.shape[-1]
    if isinstance(weight, np.ndarray):
        weight = weight.reshape(len(weight), -1)
    rows, columns = ((side - patch) // stride + 1 for side in images.shape[2:])
    stop = rows * columns if stop is None else stop
    outputs = len(weight) if isinstance(weight, np.ndarray) else weight.outputs
    out = np.empty((len(images), stop - start, outputs), np.float32)
    pixels = scratch("patch pixels", min(ROWS, stop - start), images.shape[1] * patch * patch)
    for image, into in zip(images, out):
        for first in range(start, stop, ROWS):
            last = min(first + ROWS, stop)
            _gather(image, pixels, patch, stride, columns, first, last)
            linear(pixels[: last - first], weight, bias, out=into[first - start : last - start])
    return out


@kernel(IN(3), OUT(2), types.int64, types.int64, types.int64, types.int64, types.int64)
def _gather(image, pixels, patch, stride, columns, first, last):
    """Pixels of the patches `first` to `last` of an image (3, height, width), one row a patch in the order of the weights."""
    lay_down()
    for number in range(first, last):
        row, column = divmod(number, columns)
        at = 0
        for channel in range(image.shape[0]):
            for i in range(patch):
                for j in range(patch):
                    pixels[number - first, at] = image[channel, row * stride + i, column * stride + j]
                    at += 1
    take_up()

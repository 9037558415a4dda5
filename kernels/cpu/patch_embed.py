"""Patch embedding: copy the pixels of a block of patches into a matrix (im2col), then apply a linear layer."""

from __future__ import annotations

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.linear import PackedInt8, PackedLinear, linear, unpacked

from vitnp.errors import UsageError

ROWS = 96  # patches of a block


def patch_embedding(
    images: np.ndarray,
    weight: np.ndarray | PackedLinear | PackedInt8,
    bias: np.ndarray,
    stride: int,
    *,
    patch: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    if images.dtype != np.float32:
        return reference.patch_embedding(images, unpacked(weight), bias, stride, patch=patch, start=start, stop=stop)
    if isinstance(weight, np.ndarray):
        patch = patch or weight.shape[-1]
        weight = weight.reshape(len(weight), -1)
    if patch is None:
        raise UsageError("patch is required with packed weights; pass the side of a patch in pixels")
    rows, columns = ((side - patch) // stride + 1 for side in images.shape[2:])
    stop = rows * columns if stop is None else stop
    outputs = len(weight) if isinstance(weight, np.ndarray) else weight.outputs
    out = np.empty((len(images), stop - start, outputs), np.float32)
    pixels = workspace("patch pixels", min(ROWS, stop - start), images.shape[1] * patch * patch)
    for image, tokens in zip(images, out):
        for first in range(start, stop, ROWS):
            last = min(first + ROWS, stop)
            _gather(image, pixels, patch, stride, columns, first, last)
            linear(pixels[: last - first], weight, bias, out=tokens[first - start : last - start])
    return out


@kernel(IN(3), OUT(2), types.int64, types.int64, types.int64, types.int64, types.int64)
def _gather(image, pixels, patch, stride, columns, first, last):
    """Copy the pixels of the patches from `first` to `last` of an image (3, height, width), one row per patch."""
    enter_kernel()
    for index in range(first, last):
        row, column = divmod(index, columns)
        pixel = 0
        for channel in range(image.shape[0]):
            for i in range(patch):
                for j in range(patch):
                    pixels[index - first, pixel] = image[channel, row * stride + i, column * stride + j]
                    pixel += 1
    leave_kernel()

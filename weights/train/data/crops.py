"""Cropping of photographs: one by one with Pillow on the host, or whole batches on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from vitnp.kernels.threads import pool
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.data.sampler import CropParams, crop_boxes

from vitnp.errors import ImageError
from vitnp.vit.config import ViTConfig

logger = logging.getLogger(__name__)

_DECODED_SHORT_SIDE = 360  # pixels; enough for every shape of crops
_CANVAS = 256  # side in pixels of the squares that are kept on a GPU


class Normalizer:
    """Convert crops (B, 3, h, w) in 0..255, uint8 or float, to the float32 input of a network on a device.

    Parameters
    ----------
    config : ViTConfig
        Mean and standard deviation of the network's training images.
    device : torch.device
        Device of the result.
    """

    def __init__(self, config: ViTConfig, device: torch.device) -> None:
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (config.mean, config.std))
        self._scale, self._shift, self._device = 1 / (255 * std), -mean / std, device

    def __call__(self, crops: Tensor) -> Tensor:
        """Return the normalized crops."""
        return crops.to(self._device, torch.float32) * self._scale + self._shift


class HostCropper:
    """Crop photographs with Pillow, at the full resolution of their files; for training on a CPU.

    A photograph that cannot be read is left out of its batches; the first time, a warning is logged.

    Parameters
    ----------
    pictures : sequence of Picture
        All photographs.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures
        self._reported: set[int] = set()  # indices of unreadable photographs

    def __call__(self, params: CropParams) -> Tensor:
        """Return crops (n, 3, h, w), uint8.

        Raises
        ------
        ImageError
            If none of the photographs of the batch can be read.
        """
        images, rows = [], []
        for row, index in enumerate(params.indices):
            try:
                images.append(Image.fromarray(self._pictures[index].read(_DECODED_SHORT_SIDE)))
                rows.append(row)
            except ImageError as error:
                if index not in self._reported:
                    self._reported.add(index)
                    logger.warning("%s", error)
        params = _select_readable(params, np.array(rows, np.int64))
        boxes = crop_boxes(params, np.array([image.size[::-1] for image in images]))
        height, width = params.shape
        crops = np.empty((len(images), height, width, 3), np.uint8)
        for crop, image, box, flipped in zip(crops, images, boxes, params.flipped):
            # reducing_gap=2: shrink by an integer factor first, which is faster and not visible.
            resized = image.resize((width, height), Image.Resampling.BILINEAR, box=tuple(box), reducing_gap=2)
            crop[:] = np.asarray(resized)[:, ::-1] if flipped else np.asarray(resized)
        return torch.from_numpy(crops).permute(0, 3, 1, 2)


class DeviceCropper:
    """Keep all photographs in the memory of a device, 0.2 MB each, and crop them there; for training on a GPU.

    Each is stored as a square, whatever its aspect ratio, which is restored when it is cropped. Photographs that cannot
    be read are left out as by :class:`HostCropper`.

    Parameters
    ----------
    pictures : sequence of Picture
        All photographs.
    device : torch.device
        Where to keep them.
    n_threads : int
        Number of threads that decode.
    """

    def __init__(self, pictures: Sequence[Picture], device: torch.device, n_threads: int) -> None:
        self._canvases = torch.empty((len(pictures), 3, _CANVAS, _CANVAS), dtype=torch.uint8, device=device)
        self._sizes = np.zeros((len(pictures), 2), np.int64)  # height and width; 0 if unreadable
        for index, result in enumerate(pool.map_ordered(_read_canvas, pictures, n_threads)):
            if isinstance(result, ImageError):
                logger.warning("%s", result)
                continue
            self._sizes[index], canvas = result
            self._canvases[index] = torch.from_numpy(canvas).to(device).permute(2, 0, 1)

    def __call__(self, params: CropParams) -> Tensor:
        """Return crops (n, 3, h, w), float32 in 0..255.

        Raises
        ------
        ImageError
            If none of the photographs of the batch can be read.
        """
        params = _select_readable(params, np.flatnonzero(self._sizes[params.indices, 0]))
        sizes = self._sizes[params.indices]
        device = self._canvases.device
        # grid_sample counts coordinates from -1 to 1.
        boxes = crop_boxes(params, sizes) / np.tile(sizes[:, ::-1], 2) * 2 - 1
        boxes[params.flipped] = boxes[params.flipped][:, [2, 1, 0, 3]]
        left, top, right, bottom = torch.from_numpy(boxes.T.astype(np.float32)).to(device)[:, :, None]
        rows, columns = ((torch.arange(side, device=device) + 0.5) / side for side in params.shape)
        xs, ys = left + columns * (right - left), top + rows * (bottom - top)  # (n, w), (n, h)
        grid = torch.stack(torch.broadcast_tensors(xs[:, None, :], ys[:, :, None]), -1)  # (n, h, w, 2)
        canvases = self._canvases[torch.from_numpy(params.indices).to(device)].float()
        return F.grid_sample(canvases, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _select_readable(params: CropParams, rows: np.ndarray) -> CropParams:
    """Return the parameters of the crops whose photographs could be read; raise an ImageError if there are none."""
    if not len(rows):
        raise ImageError(f"none of the {len(params.indices)} photographs of a batch can be read; give others")
    return params.select(rows)


def _read_canvas(picture: Picture) -> tuple[tuple[int, int], np.ndarray] | ImageError:
    """Return the height and width of a photograph and its square version, or why it cannot be read."""
    try:
        rgb = picture.read(_CANVAS)
    except ImageError as error:
        return error
    canvas = Image.fromarray(rgb).resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)
    height, width = rgb.shape[:2]
    return (height, width), np.array(canvas)

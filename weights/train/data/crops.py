"""Plans become crops: by Pillow, photograph by photograph, or on the device, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from vitnp.kernels.threads import pool
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.data.sampler import Plan, boxes

from vitnp.errors import ImageError
from vitnp.vit.config import ViTConfig

# Pixels of a photograph's short side that suffice for every crop, and of the square that one is squeezed into on the
# device.
_ENOUGH = 360
_CANVAS = 256


class Normalize:
    """uint8 or float crops (B, 3, h, w) in 0..255 to what a network takes, float32, on a device."""

    def __init__(self, config: ViTConfig, device: torch.device):
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (config.mean, config.std))
        self._scale, self._shift, self._device = 1 / (255 * std), -mean / std, device

    def __call__(self, crops: Tensor) -> Tensor:
        return crops.to(self._device, torch.float32) * self._scale + self._shift


class HostCrops:
    """Cuts crops with Pillow, out of files as large as they are; for a CPU.

    Parameters
    ----------
    pictures : sequence of Picture
    notice : callable
        Is told, once each, of pictures that can't be read. Batches do without them.
    """

    def __init__(self, pictures: Sequence[Picture], notice: Callable[[str], object]):
        self._pictures, self._notice, self._told = pictures, notice, set()

    def __call__(self, plan: Plan) -> Tensor:
        """Crops (n, 3, h, w), uint8.

        Raises
        ------
        ImageError
            When not one of the batch's photographs can be read.
        """
        read, kept = [], []
        for place, index in enumerate(plan.pictures):
            try:
                read.append(Image.fromarray(self._pictures[index].read(_ENOUGH)))
                kept.append(place)
            except ImageError as error:
                if index not in self._told:
                    self._told.add(index)
                    self._notice(str(error))
        plan = _only(plan, kept)
        cut = boxes(plan, np.array([picture.size[::-1] for picture in read]))
        crops = np.empty((len(read), *plan.shape, 3), np.uint8)
        for crop, picture, box, mirrored in zip(crops, read, cut, plan.mirrored):
            # reducing_gap: far too large photographs are halved first, without a loss that shows.
            resized = picture.resize(plan.shape[::-1], Image.Resampling.BILINEAR, box=tuple(box), reducing_gap=2)
            crop[:] = np.asarray(resized)[:, ::-1] if mirrored else np.asarray(resized)
        return torch.from_numpy(crops).permute(0, 3, 1, 2)


class DeviceCrops:
    """Keeps all photographs in the device's memory, 0.2 MB each, and cuts crops there; for a GPU.

    Each is squeezed into a square, whatever its aspect, and gets it back when a crop is cut.

    Parameters
    ----------
    pictures : sequence of Picture
    device : torch.device
    workers : int
        Threads that decode.
    notice : callable
        As for :class:`HostCrops`.
    """

    def __init__(
        self, pictures: Sequence[Picture], device: torch.device, workers: int, notice: Callable[[str], object]
    ):
        self._canvases = torch.empty((len(pictures), 3, _CANVAS, _CANVAS), dtype=torch.uint8, device=device)
        self._sizes = np.zeros((len(pictures), 2), np.int64)
        for index, squeezed in enumerate(pool.map_ordered(_squeezed, pictures, workers)):
            if isinstance(squeezed, ImageError):
                notice(str(squeezed))
                continue
            self._sizes[index], canvas = squeezed
            self._canvases[index] = torch.from_numpy(canvas).to(device).permute(2, 0, 1)

    def __call__(self, plan: Plan) -> Tensor:
        """Crops (n, 3, h, w), float32 in 0..255.

        Raises
        ------
        ImageError
            When not one of the batch's photographs can be read.
        """
        plan = _only(plan, np.flatnonzero(self._sizes[plan.pictures, 0]))
        sizes = self._sizes[plan.pictures]
        device = self._canvases.device
        # Of the whole, from -1 to 1, as grid_sample counts.
        cut = boxes(plan, sizes) / np.tile(sizes[:, ::-1], 2) * 2 - 1
        cut[plan.mirrored] = cut[plan.mirrored][:, [2, 1, 0, 3]]
        left, top, right, bottom = torch.from_numpy(cut.T.astype(np.float32)).to(device)[:, :, None]
        down, across = ((torch.arange(side, device=device) + 0.5) / side for side in plan.shape)
        xs, ys = left + across * (right - left), top + down * (bottom - top)  # (n, w), (n, h)
        grid = torch.stack(torch.broadcast_tensors(xs[:, None, :], ys[:, :, None]), -1)  # (n, h, w, 2)
        canvases = self._canvases[torch.from_numpy(plan.pictures).to(device)].float()
        return F.grid_sample(canvases, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Ahead:
    """Batches in the order of their numbers, cut in other threads before they are asked for."""

    def __init__(self, cut: Callable[[int], Tensor], numbers: Iterable[int], workers: int):
        self._batches = pool.map_ordered(cut, numbers, workers)

    def __call__(self) -> Tensor:
        return next(self._batches)

    def close(self) -> None:
        self._batches.close()


def _only(plan: Plan, kept: Sequence[int]) -> Plan:
    """The plan for some of its photographs."""
    if not len(kept):
        raise ImageError(f"none of {len(plan.pictures)} photographs can be read; give others")
    return plan._replace(**{name: getattr(plan, name)[kept] for name in plan._fields if name != "shape"})


def _squeezed(picture: Picture) -> tuple[tuple[int, int], np.ndarray] | ImageError:
    try:
        rgb = picture.read(_CANVAS)
    except ImageError as error:
        return error
    canvas = Image.fromarray(rgb).resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)
    return rgb.shape[:2], np.array(canvas)

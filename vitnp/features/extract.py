"""One photograph through the ViT."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vitnp import kernels
from vitnp.io import preprocess, resample, source
from vitnp.vit.model import ViT

MAX_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class Features:
    """What the clustering needs to know of a photograph; its arrays are on the network's device.

    Attributes
    ----------
    facet : (N, D) float32
        Keys (or another facet) of the patches as the network gives them, row by row of the grid.
    attention : (N,) float32
        CLS attention to the patches, mean over heads.
    grid : (int, int)
        Rows and columns of patches.
    pixels : (int, int)
        Height and width in pixels at which the network saw the photograph.
    digest : int
        Of those pixels: the photograph's own seed, whatever its name or its neighbors.
    capped : bool
        Whether the grid had to be made coarser to stay within the tokens allowed.
    """

    facet: np.ndarray
    attention: np.ndarray
    grid: tuple[int, int]
    pixels: tuple[int, int]
    digest: int
    capped: bool

    @property
    def keys(self) -> np.ndarray:
        """The facet, by the name that stored features have for it."""
        return self.facet

    @property
    def unit(self) -> np.ndarray:
        """The facet with rows of unit length, (N, D) float32: what k-means reads."""
        return kernels.for_array(self.facet).normalize_rows(self.facet)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A photograph at the size at which the network sees it, on the network's device.

    Attributes
    ----------
    pixels : (height, width, 3) uint8
    capped : bool
        As in :class:`Features`.
    """

    pixels: np.ndarray
    capped: bool

    @property
    def digest(self) -> int:
        """As in :class:`Features`."""
        return int(source.content_hash(kernels.to_host(self.pixels)), 16)


def prepare(
    rgb: np.ndarray, vit: ViT, *, size: int | None = None, stride: int | None = None, max_tokens: int = MAX_TOKENS
) -> Prepared:
    """Scale a photograph (height, width, 3) uint8 to what the network takes; options as for :func:`extract`."""
    short_side = preprocess.SHORT_SIDE if size is None else size
    scaled, capped = preprocess.network_size(
        *rgb.shape[:2], short_side=short_side, patch=vit.config.patch, stride=stride, max_tokens=max_tokens
    )
    return Prepared(resample.downscale(kernels.to_device(rgb, vit.device), scaled), capped)


def extract(
    rgb: np.ndarray,
    vit: ViT,
    *,
    size: int | None = None,
    facet: str = "key",
    layer: int = -1,
    stride: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Features:
    """Features of one photograph.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    vit : ViT
    size : int, optional
        Short side in pixels at which the network sees the photograph, as a multiple of the patch; by default 320.
    facet : {"key", "query", "value", "token"}
    layer : int
        Block to read; negative numbers count from the last.
    stride : int, optional
        Pixels between patches, a divisor of the patch. By default the patch.
    max_tokens : int
        Most patches; a larger grid is made coarser.

    Returns
    -------
    Features

    Raises
    ------
    UsageError
        For a facet, layer or stride that the network doesn't have.

    Examples
    --------
    >>> features = extract(read_image("photograph.jpg"), load_vit("auto"))     # doctest: +SKIP
    >>> features.facet.shape, features.grid                                     # doctest: +SKIP
    ((540, 192), (20, 27))
    """
    prepared = prepare(rgb, vit, size=size, stride=stride, max_tokens=max_tokens)
    return extract_batch([prepared], vit, facet=facet, layer=layer, stride=stride)[0]


def extract_batch(
    group: Sequence[Prepared], vit: ViT, *, facet: str = "key", layer: int = -1, stride: int | None = None
) -> list[Features]:
    """Features of photographs of one size, in one pass; options as for :func:`extract`."""
    found = vit(as_batch(group, vit), (facet, "attention"), layer=layer, stride=stride)
    return [
        Features(
            facet=rows,
            attention=attention.mean(axis=0),
            grid=vit.grid(*one.pixels.shape[:2], stride),
            pixels=one.pixels.shape[:2],
            digest=one.digest,
            capped=one.capped,
        )
        for one, rows, attention in zip(group, found[facet], found["attention"])
    ]


def as_batch(group: Sequence[Prepared], vit: ViT) -> np.ndarray:
    """What the network reads, (B, 3, height, width) float32, of photographs of one size."""
    pixels = [preprocess.normalize(one.pixels, vit.config.mean, vit.config.std) for one in group]
    return kernels.array_module(pixels[0]).stack(pixels)

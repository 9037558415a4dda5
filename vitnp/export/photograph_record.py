"""The record of a segmented photograph that the writers of a collection's outputs get."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitnp.cached import cached_property
from vitnp.errors import ImageError
from vitnp.io import decode
from vitnp.io.color import to_srgb
from vitnp.io.find import Photograph
from vitnp.io.resample import downscale
from vitnp.io.source import Source
from vitnp.method.prototypes import label_map
from vitnp.options import MAX_PIXELS

if TYPE_CHECKING:
    from vitnp.segmenter import Segmenter

# Short side of thumbnails, and long side of previews, in pixels.
THUMBNAIL = 240
PREVIEW = 1280


class RegionRecord(NamedTuple):
    """What is known of a region besides its pixels.

    Attributes
    ----------
    label : int
        Class, from 1.
    score : float
        Confidence of the region, 0 to 1.
    typicality : float
        How typical the region is of its class; a larger number is more typical.
    n_patches : int
        Size in patches; 0 if it is not known.
    """

    label: int
    score: float
    typicality: float
    n_patches: int


@dataclasses.dataclass(frozen=True, eq=False)
class PhotographRecord:
    """A segmented photograph, as the writers of a collection's outputs see it.

    Attributes
    ----------
    name : str
        Path within the collection, with forward slashes.
    confidence : float
        How certain it is that the photograph shows an object, 0 to 1.
    regions : tuple of RegionRecord
        The regions 1, 2, ... of `region_map`.
    load_region_map : callable
        Returns `region_map`.
    load_thumbnail : callable
        Returns the thumbnail, (h, w, 3) uint8; None if the file can no longer be read. Called only by writers that
        need it.
    path : Path, optional
        File of the photograph.
    outputs : mapping of str to Path
        Files that were written for the photograph, by kind.
    category : int, optional
        Category of similar photographs.
    load_preview : callable, optional
        As `load_thumbnail`, for a picture of up to `PREVIEW` pixels.

    Examples
    --------
    >>> mask = np.array([[0, 1, 1]], np.uint8)
    >>> photograph = PhotographRecord("a.jpg", 0.9, (RegionRecord(4, 0.9, 0.8, 12),), lambda: mask, lambda: None)
    >>> photograph.label_map
    array([[0, 4, 4]], dtype=uint8)
    """

    name: str
    confidence: float
    regions: tuple[RegionRecord, ...]
    load_region_map: Callable[[], np.ndarray]
    load_thumbnail: Callable[[], np.ndarray | None]
    path: Path | None = None
    outputs: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    category: int | None = None
    load_preview: Callable[[], np.ndarray | None] | None = None

    @cached_property
    def region_map(self) -> np.ndarray:
        """(height, width) unsigned integers: 0 on the background, then the regions from 1."""
        return self.load_region_map()

    @cached_property
    def label_map(self) -> np.ndarray:
        """(height, width) uint8: 0 on the background, then the classes from 1."""
        return label_map(self.region_map, np.array([region.label - 1 for region in self.regions], np.int64))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.region_map.shape
        return height, width

    @property
    def labels(self) -> list[int]:
        """Classes of the regions, in ascending order."""
        return sorted({region.label for region in self.regions})

    @property
    def typicality(self) -> dict[int, float]:
        """For each class of the photograph, the typicality of its most typical region."""
        best: dict[int, float] = {}
        for region in self.regions:
            best[region.label] = max(region.typicality, best.get(region.label, region.typicality))
        return best

    def without_arrays(self) -> PhotographRecord:
        """Return a copy of a few bytes: the maps that were loaded are loaded again on access."""
        return dataclasses.replace(self)


def fitted_record(
    segmenter: Segmenter, index: int, photograph: Photograph, outputs: Mapping[str, Path], *, empty: bool
) -> PhotographRecord:
    """Return the record of a photograph of a fitted collection; its arrays are loaded on access.

    Parameters
    ----------
    segmenter : Segmenter
        Fitted to the photograph's collection.
    index : int
        Index of the photograph in the collection; it is not a failure.
    photograph : Photograph
    outputs : mapping of str to Path
        Files that are written for the photograph, by kind.
    empty : bool
        Whether the photograph has no foreground.
    """
    settings, confidence, regions = segmenter.settings, float(segmenter.confidences[index]), segmenter.regions[index]
    records: tuple[RegionRecord, ...] = ()
    load_region_map: Callable[[], np.ndarray]
    if regions is not None:
        load_region_map = functools.partial(segmenter.region_map, index)
        columns = zip(regions.classes, regions.scores, regions.typical, regions.sizes)
        records = tuple(
            RegionRecord(int(label) + 1, float(score), float(typical), int(size))
            for label, score, typical, size in columns
        )
    else:  # without classes the whole foreground is one region
        load_region_map = functools.partial(_foreground, segmenter, index)
        if not empty:
            records = (RegionRecord(1, confidence, confidence, 0),)
    return PhotographRecord(
        photograph.relative.as_posix(),
        confidence,
        records,
        load_region_map,
        functools.partial(read_thumbnail, photograph.path, settings.max_pixels, settings.alpha),
        photograph.path,
        outputs,
        int(segmenter.categories[index]),
        functools.partial(read_preview, photograph.path, settings.max_pixels, settings.alpha),
    )


def _foreground(segmenter: Segmenter, index: int) -> np.ndarray:
    """Return a mask as the map of a single region."""
    return np.asarray(segmenter.masks[index], np.uint8)


def read_thumbnail(path: Source, max_pixels: int = MAX_PIXELS, alpha: str = "background") -> np.ndarray | None:
    """Return a photograph scaled down to a thumbnail, (h, w, 3) uint8 in sRGB; None if it can no longer be read."""
    image = _decode(path, max_pixels, alpha)
    return None if image is None else _scaled(image, THUMBNAIL / min(image.rgb.shape[:2]))


def read_preview(path: Path, max_pixels: int = MAX_PIXELS, alpha: str = "background") -> np.ndarray | None:
    """Return a photograph scaled down to a preview, likewise."""
    image = _decode(path, max_pixels, alpha)
    return None if image is None else _scaled(image, PREVIEW / max(image.rgb.shape[:2]))


def _decode(path: Source, max_pixels: int, alpha: str) -> decode.DecodedImage | None:
    try:
        return decode.decode_image(path, max_pixels=max_pixels, alpha=alpha)
    except ImageError:
        return None


def _scaled(image: decode.DecodedImage, scale: float) -> np.ndarray:
    height, width = image.rgb.shape[:2]
    scale = min(1.0, scale)
    small = downscale(image.rgb, (max(1, round(height * scale)), max(1, round(width * scale))))
    return to_srgb(small, image.profile)

"""The regions of a result as objects: class, mask, box, area, and annotations in COCO's format."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vitnp.cached import cached_property
from vitnp.masks.rle import encode, extent
from vitnp.masks.simplify import DEFAULT_TOLERANCE, joined, simplified_polygons


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A region of a photograph's mask.

    Attributes
    ----------
    label : int
        Class, as in the label image: from 1. Without classes it is 1, the foreground.
    mask : (height, width) bool
        True on the region.
    confidence : float
        That of the photograph, 0 to 1.
    """

    label: int
    mask: np.ndarray
    confidence: float

    def __repr__(self) -> str:
        x, y, width, height = self.box
        return f"Region(label {self.label}, {width} x {height} at ({x}, {y}), {self.share:.0%} of the photograph)"

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def share(self) -> float:
        """Share of the photograph, 0 to 1."""
        return self.area / self.mask.size

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box in pixels: x, y, width, height."""
        top, bottom, left, right = extent(self.mask)
        return left, top, right - left, bottom - top

    def polygons(self, tolerance: float = DEFAULT_TOLERANCE) -> list[np.ndarray]:
        """Return outlines simplified within `tolerance` pixels, (n, 2) float of x and y; holes are opened by a cut.

        See :func:`vitnp.masks.simplify.simplified_polygons`.
        """
        return [joined([polygon]) for polygon in simplified_polygons(self.mask, tolerance)]

    def to_coco(self, tolerance: float | None = None) -> dict[str, Any]:
        """Return an annotation of COCO without ids: run lengths, or polygons within `tolerance` pixels.

        Examples
        --------
        >>> Region(1, np.array([[0, 1, 1]], bool), 0.9).to_coco()["bbox"]
        [1, 0, 2, 1]
        """
        segmentation: dict[str, Any] | list[list[float]]
        if tolerance is None:
            segmentation = {"size": list(self.mask.shape), "counts": encode(self.mask)}
        else:
            segmentation = [ring.ravel().tolist() for ring in self.polygons(tolerance)]
        return {
            "category_id": self.label,
            "bbox": list(self.box),
            "area": self.area,
            "score": round(self.confidence, 6),
            "iscrowd": 0,
            "segmentation": segmentation,
        }


def regions_of(mask: np.ndarray, labels: np.ndarray | None, confidence: float) -> list[Region]:
    """Return the regions of a mask (H, W) bool by ascending class; one, or none, without labels (H, W)."""
    if labels is None:
        return [Region(1, mask, confidence)] if mask.any() else []
    return [Region(int(label), labels == label, confidence) for label in np.unique(labels) if label]

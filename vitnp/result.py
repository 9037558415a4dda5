"""The result for one photograph, and saving it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp import outputs
from vitnp.cached import cached_property
from vitnp.errors import UsageError
from vitnp.io.metadata import NO_METADATA, Metadata
from vitnp.io.stamp import canonical_json, parameters_hash
from vitnp.masks import boxes, overlay
from vitnp.masks.cutout import cutout
from vitnp.masks.cutout_options import CutoutOptions
from vitnp.masks.instance import Instance
from vitnp.masks.plot import plot
from vitnp.masks.region import Region, regions_of
from vitnp.method.instances import Instances, keep_objects

if TYPE_CHECKING:
    from PIL import Image

# The mask is where the soft map reaches half of its 16-bit scale.
HALF = 32768

# A mask that covers a smaller share of its photograph is empty, and a component of a mask that does so gets no box.
MIN_SHARE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """Result for one photograph. It can be pickled, and a notebook shows its overlay.

    Attributes
    ----------
    image : (height, width, 3) uint8
        The photograph, upright.
    soft : (height, width) uint16
        Refined foreground map in 16-bit fixed point: 65535 is 1.
    score : (rows, columns) float32
        Foreground score of each patch, 0 to 1, after cleaning.
    keys : (rows, columns, D) float32
        Keys of the patches (or the requested facet) as the network computes them.
    confidence : float
        With a collection, the probability that the mask is good: half of the masks with a confidence of 0.5 have an IoU
        of at least 0.7 with the true one. Without, how clearly anything stands out, 0 to 1.
    parameters : mapping
        Everything that the result depends on besides the photograph.
    photograph : str
        Fingerprint of the file, or of the pixels if there is no file.
    seconds : mapping of str to float
        Time spent in each stage.
    capped : bool
        Whether the patch grid was made coarser to stay within ``max_tokens``.
    category : int, optional
        Category of similar photographs in the fitted collection.
    labels : (height, width) uint8, optional
        With a collection that has classes: 0 for background, classes from 1.
    levels : tuple of (N,) float32, optional
        With a collection: foreground scores of the image, the data set and the category level, and of the readout level
        if it has one; N patches row by row.
    device : str
        Device that computed everything between pixels and mask: "cpu" or "cuda:0". All arrays are in host memory.
    profile : bytes, optional
        ICC color profile of the photograph; None if its colors are sRGB. Overlay and cutout carry it.
    opacity : (height, width) uint8, optional
        Alpha channel of a transparent picture, if transparent parts were kept out of the mask (``alpha="mask"``).
    instances : Instances, optional
        The separated objects as one array, if they were asked for; see :attr:`objects`.
    metadata : Metadata
        Resolution and georeference of the photograph, which its pictures carry.
    """

    image: np.ndarray
    soft: np.ndarray
    score: np.ndarray
    keys: np.ndarray
    confidence: float
    parameters: Mapping[str, object]
    photograph: str
    seconds: Mapping[str, float]
    capped: bool
    category: int | None = None
    labels: np.ndarray | None = None
    levels: tuple[np.ndarray, ...] | None = None
    device: str = "cpu"
    profile: bytes | None = None
    opacity: np.ndarray | None = None
    instances: Instances | None = None
    metadata: Metadata = NO_METADATA

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"Segmentation({width} x {height}, foreground {self.share:.0%}, confidence {self.confidence:.2f})"

    def _repr_png_(self) -> bytes:
        """Return the overlay for a notebook."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()

    @cached_property
    def mask(self) -> np.ndarray:
        """(height, width) bool, True on the foreground."""
        return self.soft >= HALF

    @property
    def share(self) -> float:
        """Share of the photograph that is foreground, 0 to 1."""
        return float(np.count_nonzero(self.mask) / self.mask.size)

    @property
    def stamp(self) -> dict[str, str]:
        """Entries by which a later run recognizes the files of this result."""
        return {"vitnp:parameters": parameters_hash(self.parameters), "vitnp:photograph": self.photograph}

    @cached_property
    def regions(self) -> list[Region]:
        """The regions by ascending class, numbered as in `labels`; without classes the whole mask, if there is one.

        Separated objects are a region each, in the order of :attr:`objects`.
        """
        if self.instances is not None:
            return list(self.objects)
        return regions_of(self.mask, self.labels, self.confidence)

    @cached_property
    def objects(self) -> list[Instance]:
        """The objects of the mask, the most confident first.

        Raises
        ------
        UsageError
            If they were not separated: ask for ``instances=True``, or for a number of ``objects``.
        """
        if self.instances is None:
            raise UsageError("the objects were not separated; segment with instances=True, or with objects=N")
        labels, confidences = self.instances.labels, self.instances.confidences
        masks = (labels == number for number in range(1, len(confidences) + 1))
        return [
            Instance(self._class_of(mask), mask, float(confidence), self._cutout_of)
            for mask, confidence in zip(masks, confidences)
        ]

    def _class_of(self, mask: np.ndarray) -> int:
        """Return the class of most of an object's pixels; 1 without classes."""
        return 1 if self.labels is None else int(np.bincount(self.labels[mask]).argmax())

    def _cutout_of(self, mask: np.ndarray) -> Image.Image:
        """Return the cutout of one object."""
        soft = keep_objects(self.soft, mask)
        return self._picture(cutout(self.image, soft, self.opacity))

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Return bounding boxes of the mask's 8-connected components, the largest component first.

        Returns
        -------
        list of (int, int, int, int)
            x, y, width and height in pixels. Components smaller than a thousandth of the photograph are left out.
        """
        found = boxes.bounding_boxes(self.mask, min_area_share=MIN_SHARE)
        return [(box.x, box.y, box.width, box.height) for box in found]

    def overlay(self) -> Image.Image:
        """Return the photograph with the mask's outline and a tint, in the photograph's color space."""
        return self._picture(overlay.overlay(self.image, self.mask))

    def cutout(self, *, background: str = "transparent", crop: str | float | None = None) -> Image.Image:
        """Cut out the object, in the photograph's color space: colors of its own up to a soft edge, and no specks.

        Parameters
        ----------
        background : str
            "transparent" gives RGBA. "blur", the photograph's own background, blurred, and opaque colors in sRGB as CSS
            writes them ("white", "#ff8800") give RGB.
        crop : str or float, optional
            Crop to the object's bounding box and a margin around it: in pixels, or in percent of the box's longer side
            such as "5%"; 0 is the box itself. By default the cutout has the photograph's size.

        Raises
        ------
        UsageError
            If a value is not allowed.

        Examples
        --------
        >>> vitnp.segment_image("cat.jpg").cutout(background="white", crop="5%")    # doctest: +SKIP
        """
        return self._picture(outputs.render_cutout(self, CutoutOptions(background, crop))[0])

    def plot(self, ax: Any = None) -> Any:
        """Draw the overlay on an axes of matplotlib, a new one by default, and return the axes.

        Raises
        ------
        UsageError
            If matplotlib is not installed.
        """
        return plot(np.asarray(self.overlay()), f"confidence {self.confidence:.2f}", ax)

    def to_dict(self) -> dict[str, Any]:
        """Return the result in numbers, without arrays: what JSON can represent.

        Returns
        -------
        dict
            "width", "height", "share", "confidence", "boxes", "regions" (label, box, area; confidence if they are
            separated objects), "category", "seconds", "device", "photograph" and "parameters".

        Examples
        --------
        >>> json.dumps(vitnp.segment_image("cat.jpg").to_dict())                    # doctest: +SKIP
        """
        height, width = self.mask.shape

        def own(region: Region) -> dict[str, float]:
            return {"confidence": round(region.confidence, 6)} if self.instances is not None else {}

        facts = {
            "width": width,
            "height": height,
            "share": round(self.share, 6),
            "confidence": round(float(self.confidence), 6),
            "boxes": [list(box) for box in self.boxes()],
            "regions": [{"label": r.label, "box": list(r.box), "area": r.area, **own(r)} for r in self.regions],
            "category": self.category,
            "seconds": dict(self.seconds),
            "device": self.device,
            "photograph": self.photograph,
            "parameters": dict(self.parameters),
        }
        # By way of JSON, so that tuples, NumPy numbers and nested mappings become plain values.
        plain: dict[str, Any] = json.loads(canonical_json(facts))
        return plain

    def to_coco(self, file_name: str = "", *, image_id: int = 1, polygons: float | None = None) -> dict[str, Any]:
        """Return the regions as a data set of COCO with one image.

        Parameters
        ----------
        file_name : str
            Name of the photograph.
        image_id : int
            Number of the image; annotations count from 1.
        polygons : float, optional
            Polygons, simplified within so many pixels, instead of run lengths.

        Returns
        -------
        dict
            "images", "annotations" and "categories", as :class:`pycocotools.coco.COCO` reads them.
        """
        height, width = self.mask.shape
        annotations = [
            {"id": number, "image_id": image_id, **region.to_coco(polygons)}
            for number, region in enumerate(self.regions, 1)
        ]
        names = "class {}" if self.labels is not None else "foreground"
        return {
            "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
            "annotations": annotations,
            "categories": [
                {"id": label, "name": names.format(label)}
                for label in sorted({region.label for region in self.regions})
            ],
        }

    def save(
        self,
        stem: str | os.PathLike[str],
        which: Iterable[str] = ("mask", "overlay"),
        *,
        background: str = "transparent",
        crop: str | float | None = None,
    ) -> dict[str, Path]:
        """Write results to files beside each other.

        Parameters
        ----------
        stem : path
            Beginning of the file names: ``OUT/cat`` gives ``OUT/cat_mask.png`` and so on. Missing folders are created.
        which : iterable of str
            Among "mask" (0 or 255), "overlay", "cutout" (RGBA), "soft" (16-bit PNG), "score" and "keys" (patch grid,
            .npy), "npz" (mask, score, metadata, and keys if they are named too) and "objects" (a palette PNG, objects
            from 1). With separated objects "cutout" writes one more file for each of them: NAME_cutout_1.png, ...
            Of a GeoTIFF, mask, soft and cutout are GeoTIFF files too.
        background, crop
            As for :meth:`cutout`.

        Returns
        -------
        dict of str to Path
            The files written; "labels" (a palette PNG) among them if there are classes.

        Raises
        ------
        UsageError
            If a name is not one of these, or a value is not allowed.
        OutputError
            If a file cannot be written; no incomplete file is left behind.

        Examples
        --------
        >>> vitnp.segment_image("cat.jpg").save("out/cat", ["mask", "cutout"])      # doctest: +SKIP
        {'mask': PosixPath('out/cat_mask.png'), 'cutout': PosixPath('out/cat_cutout.png')}
        """
        return outputs.write_outputs(self, stem, which, CutoutOptions(background, crop))

    def _picture(self, pixels: np.ndarray) -> Image.Image:
        """Return a PIL image that is saved with the photograph's color profile and resolution."""
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels))
        if self.profile is not None:
            image.info["icc_profile"] = self.profile
        if self.metadata.dpi is not None:
            image.info["dpi"] = self.metadata.dpi
        return image

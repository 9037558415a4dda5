"""YOLO segmentation: ``data.yaml``, ``images/`` and ``labels/``, as Ultralytics reads them."""

from __future__ import annotations

import json

from vitnp.export.formats.folder import FormatFolder
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io import write
from vitnp.masks.simplify import DEFAULT_TOLERANCE, joined, simplified_polygons


class YoloFolder(FormatFolder):
    """Write a YOLO segmentation folder.

    A line of ``labels/train/NAME.txt`` is a region: its class from 0, and its outline as x and y in shares of width and
    height. The format has one outline per object, so the parts of a region are joined, and holes opened, by cuts
    without width. A photograph without object has an empty file.

    References
    ----------
    "Instance segmentation datasets overview", Ultralytics documentation.
    """

    def __enter__(self) -> YoloFolder:
        super().__enter__()
        self._validation = self.settings.validation
        self._count = 0
        return self

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph and its regions."""
        part = "val" if self._count in self._validation else "train"
        self._count += 1
        name = self.image(photograph, "images", part)
        height, width = photograph.shape
        tolerance = self.settings.tolerance
        lines = []
        for number, region in enumerate(photograph.regions, 1):
            polygons = simplified_polygons(
                photograph.region_map == number, DEFAULT_TOLERANCE if tolerance is None else tolerance
            )
            if polygons:
                points = (joined(polygons) / (width, height)).ravel()
                lines.append(" ".join([str(region.label - 1), *(f"{value:.6f}" for value in points)]) + "\n")
        stem = name[: name.rindex(".")] if "." in name else name
        write.write_text(self.file("labels", part, f"{stem}.txt"), "".join(lines))

    def finish(self) -> None:
        """Write ``data.yaml``; without a ``path``, its folders are relative to the file itself."""
        has_validation = bool(self._validation)
        for part in ("train", "val") if has_validation else ("train",):
            write.make_folder(self.folder / "images" / part)
            write.make_folder(self.folder / "labels" / part)
        # A string of JSON is one of YAML, with quotes.
        names = "".join(
            f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(self.settings.names)
        )
        validation = "images/val" if has_validation else "images/train"
        write.write_text(self.file("data.yaml"), f"train: images/train\nval: {validation}\nnames:\n{names}")

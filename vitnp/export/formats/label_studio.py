"""Label Studio: tasks with predictions, the photographs beside them, and the labeling interface."""

from __future__ import annotations

import os
import urllib.parse
from types import TracebackType
from xml.sax.saxutils import quoteattr

import numpy as np

from vitnp import __version__
from vitnp.export.formats.brush_rle import encode_brush
from vitnp.export.formats.folder import FormatFolder
from vitnp.export.formats.settings import FormatSettings
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.io import write
from vitnp.io.path_text import ascii_json, path_entries
from vitnp.io.spool import Spool
from vitnp.masks.palette import voc_colors
from vitnp.masks.simplify import joined, simplified_polygons


class LabelStudioFolder(FormatFolder):
    """Write ``tasks.json`` with a prediction per photograph, ``config.xml`` and ``images/``.

    Masks are brushes, or polygons if the export has a tolerance. The tasks name photographs as Label Studio's local
    storage does: ``/data/local-files/?d=NAME/images/...``, where ``NAME`` is this folder and its parent the document
    root.

    References
    ----------
    "Import pre-annotated data into Label Studio", Label Studio documentation.
    """

    def __init__(self, path: str | os.PathLike[str], settings: FormatSettings) -> None:
        super().__init__(path, settings)
        self._count = 0

    def __enter__(self) -> LabelStudioFolder:
        super().__enter__()
        self._tasks = Spool(self.file("tasks.json"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._tasks:
            super().__exit__(kind, error, traceback)

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph and its regions."""
        name = self.image(photograph, "images")
        place = urllib.parse.quote(f"{self.path.name}/images/{name}", errors="surrogateescape")
        task = {
            "data": {"image": f"/data/local-files/?d={place}", **path_entries("name", photograph.name)},
            "predictions": [
                {
                    "model_version": f"vitnp {__version__}",
                    "score": round(photograph.confidence, 6),
                    "result": [
                        result
                        for number, region in enumerate(photograph.regions, 1)
                        for result in self._results(photograph.region_map == number, number, region)
                    ],
                }
            ],
        }
        self._tasks.write(("" if self._count == 0 else ",\n") + ascii_json(task, separators=(",", ":")))
        self._count += 1

    def _results(self, mask: np.ndarray, number: int, region: RegionRecord) -> list[dict[str, object]]:
        """Return the results of a region: one brush, or a polygon per part."""
        height, width = mask.shape
        label = [self.settings.names[region.label - 1]]
        common = {
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(region.score, 6),
        }
        if self.settings.tolerance is None:
            value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": label}
            return [{"id": f"r{number}", "type": "brushlabels", **common, "value": value}] if mask.any() else []
        polygons = simplified_polygons(mask, self.settings.tolerance)
        return [
            {
                "id": f"r{number}-{part}",
                "type": "polygonlabels",
                **common,
                # In percent of width and height.
                "value": {
                    "points": (joined([polygon]) * (100 / width, 100 / height)).round(4).tolist(),
                    "closed": True,
                    "polygonlabels": label,
                },
            }
            for part, polygon in enumerate(polygons, 1)
        ]

    def finish(self) -> None:
        """Write the tasks and the labeling interface."""
        with write.replacing(self.file("tasks.json")) as file:
            file.write(b"[")
            self._tasks.copy_to(file)
            file.write(b"]\n")
        tag = "BrushLabels" if self.settings.tolerance is None else "PolygonLabels"
        colors = voc_colors(len(self.settings.names) + 1)[1:].tolist()
        labels = "".join(
            f'    <Label value={quoteattr(name)} background="#{bytes(color).hex()}"/>\n'
            for name, color in zip(self.settings.names, colors)
        )
        write.write_text(
            self.file("config.xml"),
            f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <{tag} name="label" toName="image">\n{labels}  </{tag}>\n</View>\n',
        )

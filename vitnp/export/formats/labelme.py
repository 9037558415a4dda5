"""LabelMe: a JSON file beside each photograph, with a polygon per part of each region."""

from __future__ import annotations

from vitnp.export.formats.folder import FormatFolder
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io import write
from vitnp.masks.simplify import DEFAULT_TOLERANCE, joined, simplified_polygons

# Version of LabelMe whose format this is.
_VERSION = "5.4.1"


class LabelMeFolder(FormatFolder):
    """Write a folder that LabelMe opens.

    The parts of a region have the same ``group_id``. Holes, which the format does not have, are opened by a cut without
    width.

    References
    ----------
    Wada, "Labelme: image polygonal annotation with Python", doi:10.5281/zenodo.5711226.
    """

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph and its regions."""
        name = self.image(photograph)
        tolerance = DEFAULT_TOLERANCE if self.settings.tolerance is None else self.settings.tolerance
        shapes = [
            {
                "label": self.settings.names[region.label - 1],
                "points": joined([polygon]).tolist(),
                "group_id": number,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
            }
            for number, region in enumerate(photograph.regions, 1)
            for polygon in simplified_polygons(photograph.region_map == number, tolerance)
        ]
        height, width = photograph.shape
        stem = name[: name.rindex(".")] if "." in name else name
        record: dict[str, object] = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write.write_json(self.file(f"{stem}.json"), record)

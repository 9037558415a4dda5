"""PASCAL VOC: photographs, class masks and object masks as palette PNGs, image lists and ``labelmap.txt``."""

from __future__ import annotations

import os

import numpy as np

from vitnp.errors import OutputError, UsageError
from vitnp.export.formats.folder import FormatFolder
from vitnp.export.formats.settings import FormatSettings
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io import write
from vitnp.io.label_png import write_labels
from vitnp.masks.palette import voc_colors

# Values of an 8-bit mask besides the background; VOC's 255 is "void".
_MAX_VALUES = 254


class VocFolder(FormatFolder):
    """Write a folder in the layout of PASCAL VOC's segmentation task, as Datumaro and CVAT read it.

    Parameters
    ----------
    path, settings
        See :class:`vitnp.export.formats.folder.FormatFolder`.

    Raises
    ------
    UsageError
        If there are more than 254 classes.

    References
    ----------
    Everingham et al., "The PASCAL visual object classes (VOC) challenge", IJCV 88(2), 2010.
    """

    def __init__(self, path: str | os.PathLike[str], settings: FormatSettings) -> None:
        if len(settings.names) > _MAX_VALUES:
            raise UsageError(f"the format voc holds at most {_MAX_VALUES} classes, got {len(settings.names)}")
        super().__init__(path, settings)
        self._validation = settings.validation
        self._stems: list[str] = []

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph and its regions."""
        if len(photograph.regions) > _MAX_VALUES:
            raise OutputError(
                f"{photograph.name}: the format voc holds at most {_MAX_VALUES} objects in a photograph, "
                f"got {len(photograph.regions)}"
            )
        name = self.image(photograph, "JPEGImages")
        stem = name[: name.rindex(".")] if "." in name else name
        write_labels(self.file("SegmentationClass", f"{stem}.png"), photograph.label_map, {})
        write_labels(self.file("SegmentationObject", f"{stem}.png"), photograph.region_map.astype(np.uint8), {})
        self._stems.append(stem)

    def finish(self) -> None:
        """Write the lists of photographs and the colors of the classes."""
        for part, for_validation in (("train", False), ("val", True)):
            stems = [stem for index, stem in enumerate(self._stems) if (index in self._validation) == for_validation]
            # No list of both: readers would take each photograph twice.
            if stems:
                path = self.file("ImageSets", "Segmentation", f"{part}.txt")
                write.write_text(path, "".join(f"{stem}\n" for stem in stems))
        # Colons separate the columns of this file, and "#" starts a comment.
        names = ["background", *(name.replace(":", "-").replace("#", "-") for name in self.settings.names)]
        colors = voc_colors(len(names)).tolist()
        rows = (f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(names, colors))
        write.write_text(self.file("labelmap.txt"), "# label:color_rgb:parts:actions\n" + "".join(rows))

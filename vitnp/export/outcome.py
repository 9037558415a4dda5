"""What becomes of a photograph: the files written, the result in numbers, or the error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, OutputError
from vitnp.masks.instance import Instance
from vitnp.pipeline import DEVICE_STAGES
from vitnp.result import Segmentation


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of one photograph.

    Attributes
    ----------
    photograph : Path
    outputs : mapping of str to Path
        Files that exist now, by kind.
    error : ImageError or OutputError, optional
        Reason of a failure.
    facts : Facts, optional
        The result in numbers; None if its files existed already.
    capped : bool
        Whether the patch grid was made coarser to stay within ``max_tokens``.
    """

    photograph: Path
    outputs: Mapping[str, Path]
    error: ImageError | OutputError | None = None
    facts: Facts | None = None
    capped: bool = False

    @property
    def status(self) -> str:
        """Either "done", "skipped" (the result existed already) or "failed"."""
        return "failed" if self.error else "skipped" if self.facts is None else "done"


@dataclasses.dataclass
class Facts:
    """A result in numbers.

    Attributes
    ----------
    width, height : int
        Size of the photograph in pixels.
    share : float
        Share of the photograph that is foreground, 0 to 1.
    boxes : list of (x, y, width, height)
        Bounding boxes of the mask's components in pixels.
    confidence : float
        How certain it is that the photograph shows an object, 0 to 1.
    seconds : dict of str to float
        Time spent per stage, writing included.
    device : dict of str to str
        Where each stage ran.
    category : int, optional
        Category of similar photographs.
    classes : list of int, optional
        Classes in the photograph, from 1.
    objects : list of dict, optional
        The separated objects, the most confident first: ``box`` (x, y, width, height), ``area`` in pixels and
        ``confidence``.
    """

    width: int
    height: int
    share: float
    boxes: list[tuple[int, int, int, int]]
    confidence: float
    seconds: dict[str, float]
    device: dict[str, str]
    category: int | None = None
    classes: list[int] | None = None
    objects: list[dict[str, object]] | None = None

    @classmethod
    def of(cls, result: Segmentation, more_seconds: Mapping[str, float]) -> Facts:
        """Return the facts of a result, with the time of later stages added."""
        height, width = result.mask.shape
        seconds = {**result.seconds, **more_seconds}
        labels = None if result.labels is None else [int(label) for label in np.unique(result.labels) if label]
        return cls(
            width=width,
            height=height,
            share=round(result.share, 6),
            boxes=result.boxes(),
            confidence=round(result.confidence, 6),
            seconds=seconds,
            device={stage: result.device if stage in DEVICE_STAGES else "cpu" for stage in seconds},
            category=result.category,
            classes=labels,
            objects=None if result.instances is None else [_object_facts(each) for each in result.objects],
        )

    def as_dict(self) -> dict[str, object]:
        """Return the fields that are known, for JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def _object_facts(each: Instance) -> dict[str, object]:
    return {"box": each.box, "area": each.area, "confidence": round(each.confidence, 6)}

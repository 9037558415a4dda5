"""Many photographs, each by itself: several in flight, one outcome each, nothing done twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vitnp import images, outputs, threads
from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.segmentation import (
    ON_THE_DEVICE,
    Segmentation,
    Stopwatch,
    chosen_collection,
    labels_path,
    output_paths,
    parameters_of,
    segment_image,
)
from vitnp.vit import ViT


# Classes that an 8-bit label image tells apart beside the background.
MOST_LABELS = 255


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one photograph.

    Attributes
    ----------
    photograph : Path
    outputs : mapping of str to Path
        Files that are there now, by kind.
    error : ImageError or OutputError, optional
        Why there are none.
    facts : mapping, optional
        What there is to say of a result (see :func:`facts_of`); None for one that was there already.
    capped : bool
        Whether the patch grid was made coarser to stay within the tokens allowed.
    """

    photograph: Path
    outputs: Mapping[str, Path]
    error: ImageError | OutputError | None = None
    facts: Mapping[str, object] | None = None
    capped: bool = False

    @property
    def status(self) -> str:
        """"done", "skipped" (the result was there already) or "failed"."""
        return "failed" if self.error else "skipped" if self.facts is None else "done"


def segment_files(
    photographs: Sequence[images.Photograph],
    stems: Sequence[Path],
    vit: ViT,
    which: Sequence[str],
    *,
    overwrite: bool = False,
    count: int = 1,
    **options,
) -> Iterator[Outcome]:
    """Segment photographs and write what is asked for, in the order given.

    A photograph whose files are all there, written by this version from the same pixels with the same parameters, is skipped.

    Parameters
    ----------
    photographs : sequence of Photograph
    stems : sequence of Path
        What each photograph's files begin with, see :func:`vitnp.outputs.output_stems`.
    vit : ViT
    which : sequence of str
        Kinds of output, see :meth:`Segmentation.save`.
    overwrite : bool
        Do everything anew, and replace files that vitnp did not write.
    count : int
        Photographs in flight.
    **options
        Of :func:`vitnp.segment_image`, `collection` among them.

    Yields
    ------
    Outcome
        One a photograph; what goes wrong with one of them is in its outcome.

    Raises
    ------
    UsageError
        For an option out of range.
    """
    # Read once for all of them.
    options["collection"], _ = chosen_collection(options.get("collection", "auto"), vit, **_recorded(options))
    prototypes = getattr(options["collection"], "prototypes", None)
    if prototypes is not None and prototypes.classes.max(initial=0) >= MOST_LABELS:
        raise UsageError(f"the collection has more than {MOST_LABELS} classes, which label images can't hold; fit one with fewer")
    work = partial(_segment_file, vit=vit, which=which, overwrite=overwrite, options=options)
    # One limit around all of them, or BLAS would change hands with every photograph.
    with threads.one_blas_thread():
        yield from threads.in_order(work, zip(photographs, stems), count)


def facts_of(result: Segmentation, further_seconds: Mapping[str, float]) -> dict[str, object]:
    """A result in numbers: width and height in pixels, foreground's share, boxes as (x, y, width, height), confidence, and
    by stage, those after the result was there included, seconds and where it ran."""
    height, width = result.mask.shape
    seconds = {**result.seconds, **further_seconds}
    facts = {
        "width": width,
        "height": height,
        "share": round(result.share, 6),
        "boxes": result.boxes(),
        "confidence": round(result.confidence, 6),
        "seconds": seconds,
        "device": {stage: result.device if stage in ON_THE_DEVICE else "cpu" for stage in seconds},
    }
    if result.category is not None:
        facts["category"] = result.category
    if result.labels is not None:
        facts["classes"] = [int(label) for label in np.unique(result.labels) if label]
    return facts


def _segment_file(
    item: tuple[images.Photograph, Path], *, vit: ViT, which: Sequence[str], overwrite: bool, options: dict
) -> Outcome:
    photograph, stem = item
    path, files = photograph.path, output_paths(stem, which)
    collection = options["collection"]
    if collection is not None and collection.prototypes is not None:
        files["labels"] = labels_path(stem)
    try:
        wanted = {
            "vitnp:parameters": outputs.parameters_hash(parameters_of(vit, **_recorded(options), collection=collection)),
            "vitnp:photograph": images.file_hash(path),
        }
        if not overwrite:
            if all(outputs.stamp(file) == wanted for file in files.values()):
                return Outcome(path, files)
            outputs.refuse_foreign(files.values())
        with threads.room_for(images.pixels_of(path)):
            result = segment_image(path, vit, **options)
            clock = Stopwatch()
            files = result.save(stem, which)
            clock.lap("write")
            return Outcome(path, files, facts=facts_of(result, clock.seconds), capped=result.capped)
    except (ImageError, OutputError) as error:
        return Outcome(path, {}, error)


def _recorded(options: Mapping[str, object]) -> dict:
    """The options that results depend on, the collection apart."""
    return {name: value for name, value in options.items() if name not in ("max_pixels", "collection")}

"""Many photographs, each by itself: several in flight, one outcome each, nothing done twice."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.features.batching import BatchSizer, group_by_shape
from vitnp.features.stream import Decoded
from vitnp.io import decode, find, stamp
from vitnp.io.outputs import labels_path, output_paths
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.pipeline import DEVICE_STAGES, ImagePipeline, refused_beyond_memory
from vitnp.result import Segmentation
from vitnp.vit.model import ViT

# Classes that an 8-bit label image tells apart beside the background.
MOST_LABELS = 255
# Pixels of decoded photographs that wait for others of their grid: 3 bytes each.
WAITING = 250_000_000


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
        What there is to say of a result (see :func:`result_facts`); None for one that was there already.
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
        """ "done", "skipped" (the result was there already) or "failed"."""
        return "failed" if self.error else "skipped" if self.facts is None else "done"


def segment_files(
    photographs: Sequence[find.Photograph],
    stems: Sequence[Path],
    vit: ViT,
    which: Sequence[str],
    *,
    overwrite: bool = False,
    count: int = 1,
    batch: int | None = None,
    max_pixels: int = decode.MAX_PIXELS,
    **options,
) -> Iterator[Outcome]:
    """Segment photographs and write what is asked for, in the order given.

    A photograph whose files are all there, written by this version from the same pixels with the same parameters, is skipped.

    On the CPU each goes all its way in one thread. On a GPU photographs of one grid go through the network together, while others
    are decoded and written.

    Parameters
    ----------
    photographs : sequence of Photograph
    stems : sequence of Path
        What each photograph's files begin with, see :func:`vitnp.export.naming.output_stems`.
    vit : ViT
    which : sequence of str
        Kinds of output, see :meth:`Segmentation.save`.
    overwrite : bool
        Do everything anew, and replace files that vitnp did not write.
    count : int
        Photographs in flight.
    batch : int, optional
        Most photographs in a GPU's network at once; by default what fits into half of its free memory. A batch that doesn't fit is
        halved, and tried again.
    max_pixels : int
        Larger photographs are failures.
    **options
        Further ones of :func:`vitnp.segment_image`, `collection` among them.

    Yields
    ------
    Outcome
        One a photograph; what goes wrong with one of them is in its outcome.

    Raises
    ------
    UsageError
        For an option out of range.
    DeviceError
        When a GPU's memory doesn't hold a single photograph.
    """
    method = ImagePipeline.of(vit, **options)  # once for all of them
    prototypes = getattr(method.collection, "prototypes", None)
    if prototypes is not None and prototypes.classes.max(initial=0) >= MOST_LABELS:
        raise UsageError(
            f"the collection has more than {MOST_LABELS} classes, which label images can't hold; fit one with fewer"
        )
    run = _Run(method, tuple(which), overwrite, max_pixels)
    items = [_Item(place, photograph.path, stem) for place, (photograph, stem) in enumerate(zip(photographs, stems))]
    # One limit around all of them, or BLAS would change hands with every photograph.
    with blas.one_blas_thread():
        if vit.device == "cpu":
            yield from pool.map_ordered(run.whole, items, count)
        else:
            with contextlib.closing(run.through_the_network(items, count, BatchSizer(vit, batch))) as outcomes:
                yield from _by_place(outcomes)


def result_facts(result: Segmentation, further_seconds: Mapping[str, float]) -> dict[str, object]:
    """A result in numbers: width and height in pixels, foreground's share, boxes as (x, y, width, height), confidence, and
    by stage, those after the result was there included, seconds and where it ran.
    """
    height, width = result.mask.shape
    seconds = {**result.seconds, **further_seconds}
    facts = {
        "width": width,
        "height": height,
        "share": round(result.share, 6),
        "boxes": result.boxes(),
        "confidence": round(result.confidence, 6),
        "seconds": seconds,
        "device": {stage: result.device if stage in DEVICE_STAGES else "cpu" for stage in seconds},
    }
    if result.category is not None:
        facts["category"] = result.category
    if result.labels is not None:
        facts["classes"] = [int(label) for label in np.unique(result.labels) if label]
    return facts


@dataclasses.dataclass(frozen=True)
class _Item:
    """A photograph: its place among those given, its file, what its results' names begin with."""

    place: int
    path: Path
    stem: Path


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A photograph that waits for the network: itself and what the network reads of it."""

    item: _Item
    rgb: np.ndarray
    decoded: Decoded
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Judged:
    """A result that waits to be written."""

    item: _Item
    result: Segmentation


@dataclasses.dataclass(frozen=True)
class _Ended:
    """What became of a photograph."""

    item: _Item
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is the same for all photographs, and what is done to each of them."""

    method: ImagePipeline
    which: tuple[str, ...]
    overwrite: bool
    max_pixels: int

    def whole(self, item: _Item) -> Outcome:
        """All of a photograph, from its file to its results'."""
        vit = self.method.vit
        try:
            done = self.done_before(item)
            if done:
                return done
            with (
                blas.one_blas_thread(),
                pool.large_image_lock(decode.pixels_of(item.path)),
                refused_beyond_memory(vit.device),
            ):
                opened = self.opened(item)
                clock = Stopwatch(vit.device)
                (features,) = self.method.features([opened.decoded])
                clock.lap("network")
                clock.seconds = {"decode": opened.seconds, **clock.seconds}
                return self.written(
                    _Judged(item, self.method.segment(opened.rgb, features, opened.decoded.photograph, clock))
                )
        except (ImageError, OutputError) as error:
            return Outcome(item.path, {}, error)

    def through_the_network(self, items: Sequence[_Item], count: int, at_once: BatchSizer) -> Iterator[_Ended]:
        """Photographs in the order in which they are done: decoded side by side, in the network together, written side by side."""
        with (
            contextlib.closing(pool.map_ordered(self.begun, items, count)) as begun,
            contextlib.closing(
                group_by_shape(begun, _grid, at_once.most, weight=lambda one: one.rgb[..., 0].size, room=WAITING)
            ) as groups,
            contextlib.closing(self.judged(groups, at_once)) as judged,
        ):
            yield from pool.map_ordered(self.ended, judged, count)

    def begun(self, item: _Item) -> _Opened | _Ended:
        """As far as the network. What is done before needs none, and a large photograph goes all its way by itself."""
        try:
            done = self.done_before(item)
            if done:
                return _Ended(item, done)
            if decode.pixels_of(item.path) > pool.LARGE_IMAGE_PIXELS:
                return _Ended(item, self.whole(item))
            with blas.one_blas_thread():
                return self.opened(item)
        except (ImageError, OutputError) as error:
            return _Ended(item, Outcome(item.path, {}, error))

    def judged(self, groups: Iterator[list[_Opened] | list[_Ended]], at_once: BatchSizer) -> Iterator[_Judged | _Ended]:
        """What the network and all after it say of photographs of one grid each."""
        method, vit = self.method, self.method.vit
        for group in groups:
            if isinstance(group[0], _Ended):
                yield from group
                continue
            clock = Stopwatch(vit.device)

            def run(batch: Sequence[_Opened]) -> list:
                return method.features([one.decoded for one in batch])

            rows, columns = vit.grid(*group[0].decoded.prepared.pixels.shape[:2], method.parameters["stride"])
            for batch, found in at_once.through(group, rows * columns, run):
                clock.lap("network")
                share = clock.seconds["network"] / len(batch)
                for one, features in zip(batch, found):
                    laps = Stopwatch(vit.device)
                    laps.seconds |= {"decode": one.seconds, "network": round(share, 4)}
                    with refused_beyond_memory(vit.device):
                        result = method.segment(one.rgb, features, one.decoded.photograph, laps)
                    yield _Judged(one.item, result)
                clock = Stopwatch(vit.device)

    def ended(self, one: _Judged | _Ended) -> _Ended:
        """What became of a photograph, its results written if there are any."""
        if isinstance(one, _Ended):
            return one
        try:
            return _Ended(one.item, self.written(one))
        except OutputError as error:
            return _Ended(one.item, Outcome(one.item.path, {}, error))

    def done_before(self, item: _Item) -> Outcome | None:
        """The outcome if the results are there already.

        Raises
        ------
        ImageError
            When the photograph can't be read.
        OutputError
            When files are there that aren't vitnp's.
        """
        if self.overwrite:
            return None
        collection, files = self.method.collection, output_paths(item.stem, self.which)
        if collection is not None and collection.prototypes is not None:
            files["labels"] = labels_path(item.stem)
        wanted = {
            "vitnp:parameters": stamp.parameters_hash(self.method.parameters),
            "vitnp:photograph": decode.file_hash(item.path),
        }
        if all(stamp.stamp(file) == wanted for file in files.values()):
            return Outcome(item.path, files)
        stamp.refuse_foreign(files.values())
        return None

    def opened(self, item: _Item) -> _Opened:
        """A photograph decoded."""
        clock = Stopwatch()
        rgb = decode.read_image(item.path, max_pixels=self.max_pixels)
        clock.lap("decode")
        decoded = self.method.preprocess(rgb, decode.file_hash(item.path))
        return _Opened(item, rgb, decoded, clock.seconds["decode"])

    def written(self, one: _Judged) -> Outcome:
        """The results of a photograph as files."""
        clock = Stopwatch()
        files = one.result.save(one.item.stem, self.which)
        clock.lap("write")
        return Outcome(one.item.path, files, facts=result_facts(one.result, clock.seconds), capped=one.result.capped)


def _grid(one: _Opened | _Ended) -> tuple[int, ...] | None:
    """Of photographs that can go together; None for those that need no network any more."""
    return None if isinstance(one, _Ended) else one.decoded.prepared.pixels.shape


def _by_place(ended: Iterator[_Ended]) -> Iterator[Outcome]:
    """Outcomes in the order in which their photographs were given."""
    waiting: dict[int, Outcome] = {}
    place = 0
    for one in ended:
        waiting[one.item.place] = one.outcome
        while place in waiting:
            yield waiting.pop(place)
            place += 1

"""Segment many photographs one by one: several in flight, one outcome each, finished work is skipped."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp import options
from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.features.batching import Job, through_network
from vitnp.features.record import FeatureRecord
from vitnp.io import decode, headers, stamp
from vitnp.io.find import Photograph
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.method.collection import Collection
from vitnp.outputs import output_paths
from vitnp.pipeline import DEVICE_STAGES, ImagePipeline, image_memory_error
from vitnp.result import Segmentation
from vitnp.vit.model import ViT

# Limit of the classes that an 8-bit label image can hold besides the background.
MAX_LABELS = 255
# Limit of the pixels of decoded photographs that wait for others of their size: 3 bytes each.
_WAITING_PIXELS = 250_000_000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one photograph.

    Attributes
    ----------
    photograph : Path
    outputs : mapping of str to Path
        Files that exist now, by kind.
    error : ImageError or OutputError, optional
        Why there are none.
    facts : Facts, optional
        The result in numbers; None for one that existed already.
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

    @classmethod
    def of(cls, result: Segmentation, more_seconds: Mapping[str, float]) -> Facts:
        """Describe a result, with the time of later stages added."""
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
        )

    def as_dict(self) -> dict[str, object]:
        """Return the fields that are known, for JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def segment_files(
    photographs: Sequence[Photograph],
    stems: Sequence[Path],
    vit: ViT,
    which: Sequence[str],
    *,
    settings: options.Settings = options.Settings(),
    collection: Collection | str | Path | None = "auto",
    overwrite: bool = False,
    n_threads: int = 1,
    batch: int | None = None,
) -> Iterator[Outcome]:
    """Segment photographs and write their outputs, in the order given.

    A photograph whose files all exist, written by this version from the same pixels with the same parameters, is
    skipped. On the CPU each photograph is processed by one thread. On a GPU photographs of one size go through the
    network together while others are decoded and written.

    Parameters
    ----------
    photographs : sequence of Photograph
    stems : sequence of Path
        What the names of each photograph's files begin with, see :func:`vitnp.export.naming.output_stems`.
    vit : ViT
    which : sequence of str
        Kinds of output, see :meth:`vitnp.result.Segmentation.save`.
    settings : Settings
    collection : "auto", None or "none", path or Collection
        As for :func:`vitnp.segment_image`.
    overwrite : bool
        Redo finished work, and replace files that vitnp did not write.
    n_threads : int
        Photographs in flight.
    batch : int, optional
        Maximum number of photographs in a GPU's network at once, see
        :func:`vitnp.features.batching.through_network`.

    Yields
    ------
    Outcome
        One per photograph; its error is in its outcome.

    Raises
    ------
    UsageError
        If a value is not allowed.
    DeviceError
        If a GPU's memory does not hold a single photograph.
    """
    pipeline = ImagePipeline.create(vit, settings, collection)
    prototypes = pipeline.collection and pipeline.collection.prototypes
    if prototypes is not None and prototypes.classes.max(initial=0) >= MAX_LABELS:
        raise UsageError(
            f"label images hold at most {MAX_LABELS} classes, and the collection has more; fit one with fewer"
        )
    run = _Run(pipeline, tuple(which), overwrite)
    jobs = [
        _ImageJob(index, path=photograph.path, stem=stem)
        for index, (photograph, stem) in enumerate(zip(photographs, stems))
    ]
    # One limit around all photographs, or BLAS would change its setting with every one.
    with blas.one_blas_thread():
        if vit.device == "cpu":
            yield from pool.map_ordered(run.whole, jobs, n_threads)
        else:
            with contextlib.closing(run.batched(jobs, n_threads, batch)) as finished:
                yield from _in_given_order(finished)


@dataclasses.dataclass
class _ImageJob(Job):
    """A photograph on its way from its file to its outputs."""

    path: Path = Path()
    stem: Path = Path()
    rgb: np.ndarray | None = None
    result: Segmentation | None = None
    outcome: Outcome | None = None


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is the same for all photographs, and the stages that each of them passes."""

    pipeline: ImagePipeline
    which: tuple[str, ...]
    overwrite: bool

    def whole(self, job: _ImageJob) -> Outcome:
        """Take a photograph through all stages."""
        pipeline = self.pipeline
        try:
            finished = self.finished_before(job)
            if finished:
                return finished
            with (
                blas.one_blas_thread(),
                pool.large_image_lock(headers.pixels_of(job.path)),
                image_memory_error(pipeline.vit.device),
            ):
                self.decode(job)
                clock = Stopwatch(pipeline.vit.device)
                (features,) = pipeline.extract([job.input])
                clock.lap("network")
                job.seconds |= clock.seconds
                self.segment(job, features)
            return self.write(job)
        except (ImageError, OutputError) as error:
            return Outcome(job.path, {}, error)

    def batched(self, jobs: Sequence[_ImageJob], n_threads: int, batch: int | None) -> Iterator[_ImageJob]:
        """Yield jobs in the order in which they finish: decoded and written side by side, in the network together."""
        vit = self.pipeline.vit
        with (
            contextlib.closing(pool.map_ordered(self.begin, jobs, n_threads)) as begun,
            contextlib.closing(
                through_network(
                    begun,
                    vit,
                    self.pipeline.extract,
                    batch=batch,
                    stride=self.pipeline.spec.stride,
                    weight=lambda job: job.rgb[..., 0].size,
                    room=_WAITING_PIXELS,
                )
            ) as extracted,
            contextlib.closing(self.segmented(extracted)) as segmented,
        ):
            yield from pool.map_ordered(self.end, segmented, n_threads)

    def begin(self, job: _ImageJob) -> _ImageJob:
        """Decode a photograph, unless it is finished; a large one passes all stages by itself."""
        try:
            job.outcome = self.finished_before(job)
            if job.outcome is None and headers.pixels_of(job.path) > pool.LARGE_IMAGE_PIXELS:
                job.outcome = self.whole(job)
                job.input = None
            elif job.outcome is None:
                with blas.one_blas_thread():
                    self.decode(job)
        except (ImageError, OutputError) as error:
            job.outcome = Outcome(job.path, {}, error)
        return job

    def segmented(self, jobs: Iterator[_ImageJob]) -> Iterator[_ImageJob]:
        """Segment the photographs that have come out of the network."""
        for job in jobs:
            if job.features is not None:
                with image_memory_error(self.pipeline.vit.device):
                    self.segment(job, job.features)
            yield job

    def end(self, job: _ImageJob) -> _ImageJob:
        """Write a photograph's outputs, if there is a result."""
        if job.result is not None and job.outcome is None:
            try:
                job.outcome = self.write(job)
            except OutputError as error:
                job.outcome = Outcome(job.path, {}, error)
        return job

    def finished_before(self, job: _ImageJob) -> Outcome | None:
        """Return the outcome if the outputs exist already.

        Raises
        ------
        ImageError
            If the photograph cannot be read.
        OutputError
            If there are files that vitnp did not write.
        """
        if self.overwrite:
            return None
        collection = self.pipeline.collection
        labels = collection is not None and collection.prototypes is not None
        files = output_paths(job.stem, self.which, labels=labels)
        expected = {
            "vitnp:parameters": stamp.parameters_hash(self.pipeline.parameters),
            "vitnp:photograph": headers.file_hash(job.path),
        }
        if all(stamp.stamp(file) == expected for file in files.values()):
            return Outcome(job.path, files)
        stamp.refuse_foreign(files.values())
        return None

    def decode(self, job: _ImageJob) -> None:
        """Decode a photograph and scale it for the network."""
        clock = Stopwatch()
        job.rgb = decode.read_image(job.path, max_pixels=self.pipeline.settings.max_pixels)
        clock.lap("decode")
        job.seconds |= clock.seconds
        job.input = self.pipeline.preprocess(job.rgb, headers.file_hash(job.path))

    def segment(self, job: _ImageJob, features: FeatureRecord) -> None:
        """Make the mask from the features."""
        clock = Stopwatch(self.pipeline.vit.device)
        clock.seconds |= job.seconds
        job.result = self.pipeline.segment(job.rgb, features, clock)
        job.features = None

    def write(self, job: _ImageJob) -> Outcome:
        """Write the outputs of a photograph."""
        clock = Stopwatch()
        files = job.result.save(job.stem, self.which)
        clock.lap("write")
        return Outcome(job.path, files, facts=Facts.of(job.result, clock.seconds), capped=job.result.capped)


def _in_given_order(jobs: Iterator[_ImageJob]) -> Iterator[Outcome]:
    """Yield outcomes in the order in which their photographs were given."""
    waiting: dict[int, Outcome] = {}
    index = 0
    for job in jobs:
        waiting[job.index] = job.outcome
        while index in waiting:
            yield waiting.pop(index)
            index += 1

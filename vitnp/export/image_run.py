"""The stages that photographs pass one by one, from their files to their outputs; on a GPU in batches."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

from vitnp import kernels
from vitnp.errors import ImageError, OutputError
from vitnp.export.outcome import Facts, Outcome
from vitnp.features.batching import Job, through_network
from vitnp.features.extract import NetworkInput
from vitnp.io import headers, stamp, write
from vitnp.io.decode import DecodedImage
from vitnp.io.georeference import is_georeferenced
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.masks.cutout_options import CutoutOptions
from vitnp.method.patch_scores import ImageAnswer
from vitnp.outputs import ExactFile, expected_stamp, output_paths, write_outputs
from vitnp.pipeline import ImagePipeline, image_memory_error
from vitnp.result import Segmentation

# Limit of the pixels, 3 bytes each, of decoded photographs that wait for others of their size.
_WAITING_PIXELS = 250_000_000
# Pixels of photographs that are segmented together, which are all kept until the last of them is finished.
_TOGETHER_PIXELS = 1 << 24
# Photographs with features that may wait to be segmented: the network computes the next batch meanwhile.
_AHEAD = 32


@dataclasses.dataclass
class ImageJob(Job):
    """A photograph between its file and its outputs."""

    path: Path = Path()
    stem: Path | ExactFile = Path()
    source: headers.FileContent | str | os.PathLike[str] = ""  # its content if that is read at once, else the path
    image: DecodedImage | None = None
    answer: ImageAnswer | None = None
    take_over: Callable[[], None] = lambda: None  # makes the stream of this thread wait for features and answer
    ends_batch: bool = True
    result: Segmentation | None = None
    outcome: Outcome | None = None


@dataclasses.dataclass(frozen=True)
class ImageRun:
    """The stages that each photograph passes, and what is the same for all photographs."""

    pipeline: ImagePipeline
    which: tuple[str, ...]
    overwrite: bool
    cutout: CutoutOptions
    writable: set[Path] = dataclasses.field(default_factory=set)  # folders that have been checked

    def process(self, job: ImageJob) -> Outcome:
        """Take a photograph through all stages and return its outcome."""
        pipeline = self.pipeline
        try:
            job.source = headers.read_content(job.path)
            finished = self.finished_before(job)
            if finished:
                return finished
            with (
                blas.one_blas_thread(),
                pool.large_image_lock(headers.pixels_of(job.source)),
                image_memory_error(pipeline.vit.device),
            ):
                image, network_input = self.decode(job)
                clock = Stopwatch(pipeline.vit.device)
                (features,) = pipeline.extract([network_input])
                clock.lap("network")
                job.clocks.append(clock)
                # Written under the lock: the results of a large photograph need as much memory as decoding it.
                return self.write(job, pipeline.segment(image, features, self.clock(job)))
        except (ImageError, OutputError) as error:
            return Outcome(job.path, {}, error)

    def batched(self, jobs: Sequence[ImageJob], n_threads: int, batch: int | None) -> Generator[ImageJob, None, None]:
        """Yield jobs in the order in which they finish: decoded and written in threads, extracted in batches.

        One thread runs the network and one segments, each on a stream of its own.
        """
        vit = self.pipeline.vit
        with (
            contextlib.closing(pool.map_ordered(self.prepare, jobs, n_threads)) as prepared,
            contextlib.closing(
                pool.run_ahead(
                    through_network(
                        prepared,
                        vit,
                        self.pipeline.extract,
                        then=self.judge,
                        batch=batch,
                        stride=self.pipeline.spec.stride,
                        weight=_decoded_pixels,
                        room=_WAITING_PIXELS,
                    ),
                    _AHEAD,
                    functools.partial(kernels.own_stream, vit.device),
                )
            ) as extracted,
            contextlib.closing(self.segment_all(extracted)) as segmented,
        ):
            yield from pool.map_ordered(self.finish, segmented, n_threads)

    def prepare(self, job: ImageJob) -> ImageJob:
        """Decode a photograph unless its outputs exist; take a large one through all stages by itself."""
        try:
            job.source = headers.read_content(job.path)
            job.outcome = self.finished_before(job)
            with kernels.own_stream(self.pipeline.vit.device):
                if job.outcome is None and headers.pixels_of(job.source) > pool.LARGE_IMAGE_PIXELS:
                    job.outcome = self.process(job)
                elif job.outcome is None:
                    with blas.one_blas_thread():
                        job.image, job.input = self.decode(job)
        except (ImageError, OutputError) as error:
            job.outcome = Outcome(job.path, {}, error)
        return job

    def judge(self, jobs: Sequence[ImageJob]) -> None:
        """Compute the image level of the photographs of a batch."""
        device = self.pipeline.vit.device
        clock = Stopwatch(device, shared_by=len(jobs))
        with image_memory_error(device):
            answers = self.pipeline.judge([job.features for job in jobs if job.features is not None])
        clock.lap("cluster")
        take_over = kernels.hand_over(device)
        for job, answer in zip(jobs, answers):
            job.answer, job.take_over = answer, take_over
            job.clocks.append(clock)
            job.ends_batch = job is jobs[-1]

    def segment_all(self, jobs: Iterator[ImageJob]) -> Generator[ImageJob, None, None]:
        """Segment the photographs that have features: a batch together, or as many of it as are not too large."""
        waiting: list[ImageJob] = []
        for job in jobs:
            if job.features is None or job.image is None:
                yield job
                continue
            waiting.append(job)
            if job.ends_batch or sum(map(_decoded_pixels, waiting)) >= _TOGETHER_PIXELS:
                self.segment_together(waiting)
                yield from waiting
                waiting = []

    def segment_together(self, jobs: Sequence[ImageJob]) -> None:
        """Segment photographs of a batch."""
        device = self.pipeline.vit.device
        with image_memory_error(device), kernels.own_stream(device):
            for job in jobs:
                job.take_over()
            ready = [
                (job.image, job.features, job.answer, self.clock(job))
                for job in jobs
                if job.image is not None and job.features is not None and job.answer is not None
            ]
            images, features, answers, clocks = zip(*ready)
            results = self.pipeline.segment_batch(images, features, answers, clocks)
        # Only now has the GPU read all that these hold.
        for job, result in zip(jobs, results):
            job.result = result
            job.features = job.answer = None

    def finish(self, job: ImageJob) -> ImageJob:
        """Write a photograph's outputs, if there is a result."""
        if job.result is not None and job.outcome is None:
            try:
                job.outcome = self.write(job, job.result)
            except OutputError as error:
                job.outcome = Outcome(job.path, {}, error)
        # The list of all jobs outlives each of them, so their pixels must not stay.
        job.image = job.result = None
        return job

    def finished_before(self, job: ImageJob) -> Outcome | None:
        """Return the outcome if the outputs exist already and are up to date, else None.

        Raises
        ------
        ImageError
            If the photograph cannot be read.
        OutputError
            If files of another program are in the way, or the outputs cannot be written.
        """
        collection = self.pipeline.collection
        labels = collection is not None and collection.prototypes is not None
        georeferenced = is_georeferenced(job.source)
        files = output_paths(job.stem, self.which, labels=labels, georeferenced=georeferenced)
        if not self.overwrite:
            expected = {
                "vitnp:parameters": stamp.parameters_hash(self.pipeline.parameters),
                "vitnp:photograph": headers.file_hash(job.source),
            }
            if all(stamp.stamp(file) == expected_stamp(kind, expected, self.cutout) for kind, file in files.items()):
                return Outcome(job.path, files)
            stamp.refuse_foreign(files.values())
        self.check_writable(files)
        return None

    def check_writable(self, files: Mapping[str, Path]) -> None:
        """Check before the work that the outputs of a photograph can be written.

        Raises
        ------
        OutputError
            If their folder cannot be written to, or takes not all of the names.
        """
        for folder in {path.parent for path in files.values()} - self.writable:
            write.prepare_folder(folder)
            self.writable.add(folder)
        write.check_names(files.values())

    def decode(self, job: ImageJob) -> tuple[DecodedImage, NetworkInput]:
        """Decode a photograph and scale it for the network."""
        clock = Stopwatch()
        image, photograph = self.pipeline.decode(job.source), headers.file_hash(job.source)
        clock.lap("decode")
        job.clocks.append(clock)
        job.source = ""
        return image, self.pipeline.preprocess(image, photograph)

    def clock(self, job: ImageJob) -> Stopwatch:
        """Return a stopwatch that goes on from the stages that a photograph has passed."""
        clock = Stopwatch(self.pipeline.vit.device)
        for before in job.clocks:
            clock.include(before)
        return clock

    def write(self, job: ImageJob, result: Segmentation) -> Outcome:
        """Write the outputs of a photograph."""
        clock = Stopwatch()
        files = write_outputs(result, job.stem, self.which, self.cutout)
        clock.lap("write")
        return Outcome(job.path, files, facts=Facts.of(result, clock.seconds), capped=result.capped)


def _decoded_pixels(job: ImageJob) -> int:
    return 0 if job.image is None else job.image.rgb.shape[0] * job.image.rgb.shape[1]

"""The pipeline of a clip: each frame by itself, scores smoothed along time, refined, classes decided along tracks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np

from vitnp import kernels
from vitnp.cached import cached_property
from vitnp.errors import ImageError
from vitnp.features.batching import Job, through_network
from vitnp.features.record import FeatureRecord
from vitnp.from_features import segment_patches
from vitnp.io.decode import DecodedImage
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.method.collection import Collection
from vitnp.method.patch_scores import PatchScores, clean_patches, combine_patches, judge_image
from vitnp.method.prototypes import label_map
from vitnp.pipeline import ImagePipeline, image_memory_error
from vitnp.result import Segmentation
from vitnp.video.frames import Frame
from vitnp.video.smoothing import SMOOTHING, Smoothable, SmoothingConfig, smooth
from vitnp.video.tracks import RegionEvidence, smooth_evidence

# Limit of the pixels of decoded frames that wait for a batch on a GPU.
_WAITING_PIXELS = 100_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class FrameResult:
    """What became of a frame: a result, an error, or neither if it was skipped.

    Attributes
    ----------
    frame : Frame
    fingerprint : str
        Hash of all frames that the result depends on; empty for an error.
    image : DecodedImage or None
    confidence : float
    result : Segmentation or None
    error : ImageError or None
    """

    frame: Frame
    fingerprint: str = ""
    image: DecodedImage | None = None
    confidence: float = 0.0
    result: Segmentation | None = None
    error: ImageError | None = None


@dataclasses.dataclass
class _FrameJob(Job):
    """A frame on its way to its patch scores."""

    frame: Frame | None = None
    image: DecodedImage | None = None
    scores: PatchScores | None = None


# What becomes of a frame, and its regions if their classes are still to be decided.
_Finished = tuple[FrameResult, "RegionEvidence[np.ndarray] | None"]


@dataclasses.dataclass(frozen=True, eq=False)
class VideoPipeline:
    """Segment the frames of clips with the same network, settings and collection.

    Attributes
    ----------
    image : ImagePipeline
    smoothing : SmoothingConfig
    n_threads, batch : int, optional
        As for :func:`segment_video`.
    """

    image: ImagePipeline
    smoothing: SmoothingConfig = SMOOTHING
    n_threads: int | None = None
    batch: int | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """Everything that a result depends on besides the frames."""
        return {**self.image.parameters, "smoothing": dataclasses.asdict(self.smoothing)}

    @property
    def _tracks(self) -> bool:
        """Whether there are classes to be decided along tracks."""
        collection = self.image.collection
        return self.smoothing.steps > 0 and collection is not None and collection.prototypes is not None

    @cached_property
    def _collection(self) -> Collection | None:
        """The collection for the mask of a single frame: without classes if these are decided along tracks."""
        collection = self.image.collection
        return dataclasses.replace(collection, prototypes=None) if self._tracks and collection else collection

    def segment(
        self, frames: Iterable[Frame], skip: Callable[[Frame, str], bool] = lambda frame, fingerprint: False
    ) -> Generator[FrameResult, None, None]:
        """Yield what becomes of each frame, in order.

        Parameters
        ----------
        frames : iterable of Frame
        skip : callable
            Called with a frame and the fingerprint of its result, from several threads; if it returns True, no mask is
            made. Where classes are decided along tracks it is not called, because each frame needs the masks of others.
        """
        n_threads = pool.resolve_n_threads(self.n_threads)
        failed: list[_FrameJob] = []

        def finish(one: Smoothable[_FrameJob]) -> _Finished:
            frame = one.payload.frame
            assert frame is not None
            result, regions = None, None
            if self._tracks or not skip(frame, one.fingerprint):
                with blas.one_blas_thread():
                    result = self._finish(one)
                    regions = self._regions(one, result) if self._tracks else None
            return FrameResult(frame, one.fingerprint, one.payload.image, one.confidence, result), regions

        def failures(before: int | None = None) -> Iterator[FrameResult]:
            while failed and (before is None or failed[0].index < before):
                job = failed.pop(0)
                assert job.frame is not None and isinstance(job.error, ImageError)
                yield FrameResult(job.frame, error=job.error)

        with (
            blas.one_blas_thread(),
            contextlib.closing(self._scored(frames, n_threads)) as jobs,
            contextlib.closing(pool.map_ordered(finish, self._smoothed(jobs, failed), n_threads)) as finished,
        ):
            for each in self._classified(finished) if self._tracks else (result for result, _ in finished):
                yield from failures(before=each.frame.index)
                yield each
            yield from failures()

    def _scored(self, frames: Iterable[Frame], n_threads: int) -> Generator[_FrameJob, None, None]:
        """Yield frames with the scores of their patches, in order."""
        network = self.image.vit
        shapes: list[tuple[int, ...]] = []  # of the first frame that can be read

        def one_size(jobs: Iterable[_FrameJob]) -> Iterator[_FrameJob]:
            for job in jobs:
                if job.image is not None:
                    shapes[:] = shapes or [job.image.rgb.shape]
                    if job.image.rgb.shape != shapes[0]:
                        raise _other_size(job, shapes[0])
                yield job

        def prepare(frame: Frame) -> _FrameJob:
            job = self._decode(frame)
            if network.device == "cpu" and job.input is not None:
                (job.features,) = self.image.extract([job.input])
                self._score(job)
            return job

        with contextlib.closing(pool.map_ordered(prepare, frames, n_threads)) as prepared:
            jobs: Iterable[_FrameJob] = one_size(prepared)
            if network.device == "cpu":
                yield from jobs
                return
            extracted = through_network(
                jobs, network, self.image.extract, batch=self.batch, stride=self.image.spec.stride,
                weight=lambda job: 0 if job.image is None else job.image.rgb.size // 3, room=_WAITING_PIXELS,
            )  # fmt: skip
            for job in _in_order(extracted):
                if job.features is not None:
                    self._score(job)
                yield job

    def _decode(self, frame: Frame) -> _FrameJob:
        """Decode a frame and scale it for the network."""
        job = _FrameJob(frame.index, frame=frame)
        settings = self.image.settings
        try:
            job.image = frame.decode(max_pixels=settings.max_pixels, alpha=settings.alpha)
            job.photograph = frame.fingerprint(job.image)
        except ImageError as error:
            job.error = error
            return job
        # The decoder's own copy is not needed any more.
        job.frame = dataclasses.replace(frame, source=None)
        with blas.one_blas_thread():
            job.input = self.image.preprocess(job.image, job.photograph)
        return job

    def _score(self, job: _FrameJob) -> None:
        """Compute the scores of a frame by itself, without cleaning."""
        pipeline, features = self.image, job.features
        assert features is not None
        with blas.one_blas_thread(), image_memory_error(pipeline.vit.device):
            answer = judge_image(
                features, pipeline.vit.device, pipeline.settings.seed, pipeline.collection,
                domain=pipeline.settings.domain,
            )  # fmt: skip
            job.scores = combine_patches(features, answer, pipeline.vit.device, pipeline.collection)

    def _smoothed(self, jobs: Iterable[_FrameJob], failed: list[_FrameJob]) -> Iterator[Smoothable[_FrameJob]]:
        """Smooth the scores of frames along time; those that could not be read are put aside."""

        def readable() -> Iterator[Smoothable[_FrameJob]]:
            for job in jobs:
                if job.error is not None:
                    failed.append(job)
                    continue
                features, scores = job.features, job.scores
                assert features is not None and scores is not None and job.photograph is not None
                yield Smoothable(
                    kernels.to_host(scores.score), scores.confidence, _unit_keys(features), job.photograph, job
                )

        return smooth(readable(), self.smoothing)

    def _finish(self, one: Smoothable[_FrameJob]) -> Segmentation:
        """Make the mask of a frame from its smoothed scores."""
        pipeline, job = self.image, one.payload
        assert job.image is not None and job.features is not None and job.scores is not None
        clock = Stopwatch(pipeline.vit.device)
        score = kernels.to_device(one.score, pipeline.vit.device)
        patches = dataclasses.replace(job.scores, score=score, find_confidence=lambda: one.confidence)
        patches = clean_patches(patches, pipeline.collection, domain=pipeline.settings.domain)
        features = dataclasses.replace(job.features, photograph=one.fingerprint)
        with image_memory_error(pipeline.vit.device):
            return segment_patches(job.image, features, patches, self.parameters, clock, pipeline.vit, self._collection)

    def _regions(self, one: Smoothable[_FrameJob], result: Segmentation) -> RegionEvidence[np.ndarray]:
        """Return the regions of a frame's mask with their evidence; the payload is the map of their numbers."""
        pipeline, features = self.image, one.payload.features
        assert pipeline.collection is not None and features is not None
        regions, patches, evidence = pipeline.collection.class_evidence(
            pipeline.vit, dataclasses.replace(features, photograph=one.fingerprint), result.mask, result.instances
        )
        return RegionEvidence(one.keys, patches, evidence, one.fingerprint, regions)

    def _classified(self, finished: Iterable[_Finished]) -> Iterator[FrameResult]:
        """Add the classes of the regions, decided along their tracks."""
        waiting: deque[FrameResult] = deque()

        def regions() -> Iterator[RegionEvidence[np.ndarray]]:
            for each, found in finished:
                assert found is not None
                waiting.append(each)
                yield found

        for found in smooth_evidence(regions(), self.smoothing):
            each = waiting.popleft()
            assert each.result is not None
            labels = label_map(found.payload, found.evidence.argmax(axis=1))
            result = dataclasses.replace(each.result, labels=labels, photograph=found.fingerprint)
            yield dataclasses.replace(each, result=result, fingerprint=found.fingerprint)


def _unit_keys(features: FeatureRecord) -> np.ndarray:
    """Return the keys (rows, columns, D) of a frame, normalized to unit length, in host memory."""
    return np.asarray(kernels.to_host(features.unit)).reshape(*features.grid, -1)


def _other_size(job: _FrameJob, first: tuple[int, ...]) -> ImageError:
    assert job.frame is not None and job.image is not None
    height, width, _ = job.image.rgb.shape
    return ImageError(
        f"{job.frame.name}: this frame has {width} x {height} pixels, and those before it {first[1]} x {first[0]}; "
        "the frames of a clip have one size"
    )


def _in_order(jobs: Iterable[_FrameJob]) -> Iterator[_FrameJob]:
    """Yield jobs by their index, from 0; only a few are early."""
    waiting: dict[int, _FrameJob] = {}
    index = 0
    for job in jobs:
        waiting[job.index] = job
        while index in waiting:
            yield waiting.pop(index)
            index += 1

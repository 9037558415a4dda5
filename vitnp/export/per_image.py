"""Segment photographs one by one: several in flight, one outcome each; finished work is skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from vitnp import options
from vitnp.errors import UsageError
from vitnp.export.image_run import ImageJob, ImageRun
from vitnp.export.outcome import Outcome
from vitnp.io.find import Photograph
from vitnp.io.part_files import remove_abandoned
from vitnp.kernels.threads import blas, pool
from vitnp.masks.cutout_options import DEFAULT_CUTOUT, CutoutOptions
from vitnp.method.collection import Collection
from vitnp.outputs import ExactFile
from vitnp.pipeline import ImagePipeline
from vitnp.vit.model import ViT

# Limit of the classes in an 8-bit label image, where 0 is the background.
MAX_LABELS = 255


def segment_files(
    photographs: Sequence[Photograph],
    stems: Sequence[Path | ExactFile],
    vit: ViT,
    which: Sequence[str],
    *,
    settings: options.Settings | None = None,
    collection: Collection | str | Path | None = "auto",
    overwrite: bool = False,
    n_threads: int = 1,
    batch: int | None = None,
    cutout: CutoutOptions = DEFAULT_CUTOUT,
) -> Generator[Outcome, None, None]:
    """Segment photographs and write their outputs, in the order given.

    A photograph whose files all exist, written by this version from the same pixels with the same parameters, is
    skipped. On the CPU each photograph is processed by one thread. On a GPU photographs of one size go through the
    network together while others are decoded and written.

    Parameters
    ----------
    photographs : sequence of Photograph
    stems : sequence of Path or ExactFile
        What the names of each photograph's files begin with, see :func:`vitnp.export.naming.output_stems`.
    vit : ViT
    which : sequence of str
        Kinds of output, see :meth:`vitnp.result.Segmentation.save`.
    settings : Settings, optional
        The defaults if left out.
    collection : "auto", None or "none", path or Collection
        As for :func:`vitnp.segment_image`.
    overwrite : bool
        Redo finished work, and replace files that vitnp did not write.
    n_threads : int
        Photographs in flight.
    batch : int, optional
        Maximum number of photographs in a GPU's network at once, see
        :func:`vitnp.features.batching.through_network`.
    cutout : CutoutOptions
        Background and crop of cutouts.

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
    pipeline = ImagePipeline.create(vit, settings or options.Settings(), collection)
    prototypes = None if pipeline.collection is None else pipeline.collection.prototypes
    if prototypes is not None and prototypes.classes.max(initial=0) >= MAX_LABELS:
        raise UsageError(
            f"the collection must have at most {MAX_LABELS} classes where label images are written, "
            f"got {prototypes.classes.max() + 1}; fit one with fewer"
        )
    for folder in {Path(stem).parent for stem in stems}:
        remove_abandoned(folder)
    run = ImageRun(pipeline, tuple(which), overwrite, cutout)
    jobs = [
        ImageJob(index, path=photograph.path, stem=stem)
        for index, (photograph, stem) in enumerate(zip(photographs, stems))
    ]
    # Set the limit once around all photographs, not anew for each.
    with blas.one_blas_thread():
        if vit.device == "cpu":
            yield from pool.map_ordered(run.process, jobs, n_threads)
        else:
            with contextlib.closing(run.batched(jobs, n_threads, batch)) as finished:
                yield from _in_given_order(finished)


def _in_given_order(jobs: Iterator[ImageJob]) -> Iterator[Outcome]:
    """Yield outcomes in the order in which their photographs were given."""
    waiting: dict[int, Outcome] = {}
    index = 0
    for job in jobs:
        assert job.outcome is not None  # set by one of the stages
        waiting[job.index] = job.outcome
        while index in waiting:
            yield waiting.pop(index)
            index += 1

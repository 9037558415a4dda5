"""Write features for other programs, and pictures of them: some files for each photograph."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path

from vitnp import options
from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.features.batching import Job
from vitnp.features.feature_file import stamp as stamp
from vitnp.features.outputs import OF_HEADS, FeatureOutputs, metadata_of
from vitnp.features.pca import PatchPCA
from vitnp.features.pictures import PictureMaker
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stored_stream import stream_through_store
from vitnp.io import decode, find, headers, write
from vitnp.io.part_files import remove_abandoned
from vitnp.io.stamp import refuse_foreign
from vitnp.kernels.threads import blas, pool
from vitnp.vit.model import ViT


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of writing the features of one photograph.

    Attributes
    ----------
    photograph : Path
    outputs : mapping of str to Path
        Files by the name of the output; empty if they could not be written.
    error : ImageError or OutputError, optional
        Reason why there are no files.
    features : FeatureRecord, optional
        Features that were written; None if the files existed already.
    frame : int, optional
        Position in its video of a frame, from 0; `photograph` is the video.
    seconds : float, optional
        Time of a frame from the beginning of its video.
    """

    photograph: Path
    outputs: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    error: ImageError | OutputError | None = None
    features: FeatureRecord | None = None
    frame: int | None = None
    seconds: float | None = None

    @property
    def path(self) -> Path | None:
        """The first of the files; None if there are none."""
        return next(iter(self.outputs.values()), None)

    @property
    def status(self) -> str:
        """Either "done", "skipped" (the files existed already) or "failed"."""
        return "failed" if self.error else "skipped" if self.features is None else "done"


def write_features(
    photographs: Sequence[find.Photograph],
    stems: Sequence[Path],
    vit: ViT,
    spec: FeatureSpec,
    *,
    which: Sequence[str] = ("features",),
    form: str = "npz",
    basis: PatchPCA | None = None,
    nearest: bool = False,
    store: FeatureStore | None = None,
    overwrite: bool = False,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = decode.MAX_PIXELS,
) -> Generator[Outcome, None, None]:
    """Write the features of each photograph, and pictures of them.

    A photograph whose files exist, written by this version from the same pixels with the same spec, is skipped.

    Parameters
    ----------
    photographs : sequence of Photograph
    stems : sequence of Path
        Path of each photograph's files without their suffixes, see :func:`vitnp.export.naming.output_stems`.
    vit : ViT
    spec : FeatureSpec
        Specification made from this network; with ``attention_heads=True`` for "attention" and "maps".
    which : sequence of str
        Among "features" (arrays, NAME.npz), "pca" (NAME_pca.png), "attention" (NAME_attention.png, the mean over heads,
        and NAME_attention_head0.png and so on) and "maps" (NAME_maps.npz, the numbers behind the pictures).
    form : {"npz", "safetensors"}
        Format of the file of features.
    basis : PatchPCA, optional
        Basis of the colors, see :func:`vitnp.features.basis.fit_basis`; "pca" needs one.
    nearest : bool
        Show each patch in one color, instead of interpolating between patches.
    store : FeatureStore, optional
        Features that it has are not computed again; others are added to it.
    overwrite : bool
        Write every file again, and replace files that vitnp did not write.
    n_threads, batch, max_pixels
        As for :func:`vitnp.features.stream.extract_to_store`.

    Yields
    ------
    Outcome
        One per photograph, in the order in which they are finished; its error is in its outcome.

    Raises
    ------
    OutputError
        If the store cannot be written.
    UsageError
        If a name is not that of an output, the basis or the spec does not fit, or the features exceed the range of the
        precision.
    """
    _check_outputs(which, spec, basis)
    outputs = FeatureOutputs(
        tuple(which), form, metadata_of(vit, spec), vit.config.heads,
        PictureMaker.of(vit, spec, basis, nearest=nearest), spec.alpha, max_pixels,
    )  # fmt: skip
    n_threads = pool.resolve_n_threads(n_threads)
    files = [outputs.files(stem) for stem in stems]
    _check_distinct(files)
    run = _Run(photographs, files, outputs, overwrite)
    for folder in {stem.parent for stem in stems}:
        remove_abandoned(folder)
    with (
        blas.one_blas_thread(),
        contextlib.closing(
            stream_through_store(
                photographs, vit, spec, store,
                skip=run.skip, n_threads=n_threads, batch=batch, max_pixels=max_pixels,
            )
        ) as jobs,
        contextlib.closing(pool.map_ordered(run.finish, jobs, n_threads)) as outcomes,
    ):  # fmt: skip
        yield from outcomes


def _check_outputs(which: Sequence[str], spec: FeatureSpec, basis: PatchPCA | None) -> None:
    """Raise UsageError unless outputs can be made of these features."""
    allowed = options.FEATURE_OUTPUTS
    unknown = [name for name in which if name not in allowed]
    if unknown or not which:
        raise UsageError(f"outputs must be some of {options.enumerate_words(allowed)}, got {unknown or 'nothing'}")
    if "pca" in which and basis is None:
        raise UsageError("pictures of principal components need a basis; fit one, or load it")
    if not spec.attention_heads and any(name in which for name in OF_HEADS):
        raise UsageError("attention maps need the attention of each head; use a spec with attention_heads=True")


def _check_distinct(files: Sequence[Mapping[str, Path]]) -> None:
    """Raise UsageError if two photographs have a file in common, as a.jpg and a_maps.jpg may."""
    count = Counter(path for of_one in files for path in of_one.values())
    for path, n in count.most_common(1):
        if n > 1:
            raise UsageError(
                f"{path} would hold outputs of {n} photographs; rename one, or write fewer kinds of outputs"
            )


@dataclasses.dataclass(eq=False)
class _Run:
    """What is known of the photographs of a run, and how each of them is finished."""

    photographs: Sequence[find.Photograph]
    files: Sequence[Mapping[str, Path]]
    outputs: FeatureOutputs
    overwrite: bool
    finished: set[int] = dataclasses.field(default_factory=set)
    refused: dict[int, OutputError] = dataclasses.field(default_factory=dict)
    writable: set[Path] = dataclasses.field(default_factory=set)  # folders that have been checked

    def skip(self, index: int, photograph: str) -> bool:
        """Return whether the files of a photograph are up to date, or cannot be written."""
        files = self.files[index]
        if not self.overwrite and all(
            stamp(path) == self.outputs.stamp(name, photograph) for name, path in files.items()
        ):
            self.finished.add(index)
            return True
        try:
            self.check_place(files.values())
        except OutputError as error:
            self.refused[index] = error
            return True
        return False

    def check_place(self, paths: Iterable[Path]) -> None:
        """Raise OutputError if another program's file is in the way, or the folder takes no file of this name."""
        paths = list(paths)
        for folder in {path.parent for path in paths} - self.writable:
            write.prepare_folder(folder)
            self.writable.add(folder)
        write.check_names(paths)
        if not self.overwrite:
            refuse_foreign(path for path in paths if stamp(path) is None)

    def finish(self, job: Job) -> Outcome:
        """Write the files of a photograph, and return what became of it."""
        source, files = self.photographs[job.index], self.files[job.index]
        error = job.error or self.refused.get(job.index)
        if error is not None:
            return Outcome(source.path, error=error)
        if job.index in self.finished:
            return Outcome(source.path, files)
        assert job.features is not None  # only photographs that are finished or refused are skipped
        try:
            with blas.one_blas_thread(), pool.large_image_lock(self._pixels(source)):
                self.outputs.write(files, job.features, source)
        except (ImageError, OutputError) as error:
            return Outcome(source.path, error=error)
        return Outcome(source.path, files, features=job.features)

    def _pixels(self, source: find.Photograph) -> int:
        """Return the number of pixels that are drawn; files of features alone have none."""
        return headers.pixels_of(source.path) if set(self.outputs.which) != {"features"} else 0

"""Write features for other programs: one .npz or .safetensors file per photograph."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from vitnp import __version__
from vitnp.checkpoints.safetensors_io import write_safetensors
from vitnp.errors import ImageError, OutputError
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import ShardWriter, in_store, stream
from vitnp.io import decode, find, write
from vitnp.io import stamp as stamp_
from vitnp.io.part_files import remove_abandoned
from vitnp.io.stamp import parameters_hash, refuse_foreign
from vitnp.vit.model import ViT

FORMATS = ("npz", "safetensors")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of writing the features of one photograph.

    Attributes
    ----------
    photograph : Path
    path : Path, optional
        File of features; None if it could not be written.
    error : ImageError or OutputError, optional
        Reason why there is no file.
    features : FeatureRecord, optional
        Features that were written; None if the file existed already.
    """

    photograph: Path
    path: Path | None = None
    error: ImageError | OutputError | None = None
    features: FeatureRecord | None = None

    @property
    def status(self) -> str:
        """Either "done", "skipped" (the file existed already) or "failed"."""
        return "failed" if self.error else "skipped" if self.features is None else "done"


def write_features(
    photographs: Sequence[find.Photograph],
    stems: Sequence[Path],
    vit: ViT,
    spec: FeatureSpec,
    *,
    form: str = "npz",
    store: FeatureStore | None = None,
    overwrite: bool = False,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = decode.MAX_PIXELS,
) -> Generator[Outcome, None, None]:
    """Write a file of features for each photograph.

    A photograph whose file exists, written by this version from the same pixels with the same spec, is skipped.

    Parameters
    ----------
    photographs : sequence of Photograph
    stems : sequence of Path
        Path of each file without its suffix, see :func:`vitnp.export.naming.output_stems`.
    vit : ViT
    spec : FeatureSpec
        Specification made from this network.
    form : {"npz", "safetensors"}
        File format.
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
        If the features exceed the range of the precision.
    """
    metadata = metadata_of(vit, spec)
    parameters = parameters_hash(metadata)
    paths = [Path(f"{stem}.{form}") for stem in stems]
    finished: set[int] = set()
    refused: dict[int, OutputError] = {}
    check_place = _PlaceCheck(overwrite)
    for folder in {path.parent for path in paths}:
        remove_abandoned(folder)

    def skip(index: int, photograph: str) -> bool:
        if not overwrite and stamp(paths[index]) == {"vitnp:parameters": parameters, "vitnp:photograph": photograph}:
            finished.add(index)
            return True
        try:
            check_place(paths[index])
        except OutputError as error:
            refused[index] = error
            return True
        return store is not None and in_store(store, photograph, vit)

    with contextlib.ExitStack() as stack:
        jobs = stack.enter_context(
            contextlib.closing(
                stream(photographs, vit, spec, skip=skip, n_threads=n_threads, batch=batch, max_pixels=max_pixels)
            )
        )
        writer = None if store is None else stack.enter_context(ShardWriter(store))
        for job in jobs:
            source, path, features = photographs[job.index].path, paths[job.index], job.features
            if job.error is not None or job.photograph is None:
                yield Outcome(source, error=job.error)
                continue
            if job.index in refused:
                yield Outcome(source, error=refused[job.index])
                continue
            if job.index in finished:
                yield Outcome(source, path)
                continue
            if features is not None and writer is not None:
                writer.add(features)
            if features is None and store is not None:
                features = store.entry(job.photograph)
            assert features is not None  # only photographs that are finished, refused or in the store are skipped
            try:
                stamps = {"vitnp:parameters": parameters, "vitnp:photograph": features.photograph}
                write_file(path, features, {**metadata, **stamps})
            except OutputError as error:
                yield Outcome(source, error=error)
            else:
                yield Outcome(source, path, features=features)


class _PlaceCheck:
    """Check, before its features are computed, that the file of a photograph can be written.

    Parameters
    ----------
    overwrite : bool
        Whether files that vitnp did not write are replaced.
    """

    def __init__(self, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._writable: set[Path] = set()

    def __call__(self, path: Path) -> None:
        """Raise OutputError if another program's file is in the way, or the folder takes no file of this name."""
        if path.parent not in self._writable:
            write.prepare_folder(path.parent)
            self._writable.add(path.parent)
        write.check_names([path])
        if not self._overwrite and stamp(path) is None:
            refuse_foreign([path])


def metadata_of(vit: ViT, spec: FeatureSpec) -> dict[str, object]:
    """Return the metadata that all files of a run share: network, spec and version."""
    metadata = {"model": vit.name, "patch": vit.config.patch, **spec.as_stored(), "version": __version__}
    del metadata["regions"]  # the files are the same with and without
    return metadata


def write_file(path: Path, features: FeatureRecord, metadata: Mapping[str, object]) -> None:
    """Write the features of one photograph.

    Parameters
    ----------
    path : Path
        Path with the suffix ``.npz`` or ``.safetensors``.
    features : FeatureRecord
        Written as "keys" (rows, columns, D), "attention" (rows, columns) and "cls" (D,).
    metadata : mapping
        Further metadata, besides the sizes of the photograph, of the network's input and of the grid.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    arrays = {
        "keys": features.keys.reshape(*features.grid, -1),
        "attention": features.attention.reshape(features.grid),
        "cls": features.cls,
    }
    metadata = {
        **metadata,
        "grid": features.grid,
        "pixels": features.pixels,
        "photograph_size": features.size,
        "capped": features.capped,
    }
    if path.suffix == ".npz":
        # Keys are close to noise: compression takes long and saves almost nothing.
        write.write_npz(path, arrays, metadata, compressed=False)
        return
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    write_safetensors(path, arrays, {"Software": f"vitnp {__version__}", **texts})


def stamp(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """Return the entries that begin with "vitnp:" in the metadata of a file of features.

    Returns
    -------
    dict or None
        None if there is no such file, or vitnp did not write it; see :func:`vitnp.io.stamp.stamp`.
    """
    if os.fspath(path).endswith(".npz"):
        return stamp_.stamp(path)
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        return None
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    if not metadata.get("Software", "").startswith("vitnp "):
        return None
    return {name: value for name, value in metadata.items() if name.startswith("vitnp:")}

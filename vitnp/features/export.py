"""Features as files for other programs: one a photograph, .npz or .safetensors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
from vitnp.io.source import path_of
from vitnp.io.stamp import parameters_hash, refuse_foreign
from vitnp.vit.model import ViT

FORMATS = ("npz", "safetensors")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one photograph.

    Attributes
    ----------
    photograph : Path
    status : str
        "done", "skipped" (the file was there already) or "failed".
    path : Path or None
        The file, where there is one.
    error : ImageError or OutputError, optional
        Why there is none.
    features : FeatureRecord or None
        Of what was done.
    """

    photograph: Path
    status: str
    path: Path | None = None
    error: ImageError | OutputError | None = None
    features: FeatureRecord | None = None


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
) -> Iterator[Outcome]:
    """Write a file of features for each photograph.

    A photograph whose file is there, written by this version from the same picture with the same options, is skipped.

    Parameters
    ----------
    photographs : sequence of Photograph
    stems : sequence of Path
        Each file's name but for its ending, see :func:`vitnp.export.naming.output_stems`.
    vit : ViT
    spec : FeatureSpec
        Of this network: it holds the options.
    form : {"npz", "safetensors"}
    store : FeatureStore, optional
        Asked first, and given what it doesn't have.
    overwrite : bool
        Write every file anew, and replace files that vitnp did not write.
    n_threads, batch, max_pixels
        As for :func:`vitnp.features.stream.extract_to_store`.

    Yields
    ------
    Outcome
        One a photograph, in the order in which they are done; what goes wrong with one of them is in its outcome.

    Raises
    ------
    OutputError
        When the store can't be written.
    UsageError
        When the features don't fit the precision.
    """
    facts = metadata_of(vit, spec)
    parameters = parameters_hash(facts)
    paths = [Path(f"{stem}.{form}") for stem in stems]

    finished: set[int] = set()

    def skip(index: int, photograph: str) -> bool:
        if not overwrite and stamp(paths[index]) == {"vitnp:parameters": parameters, "vitnp:photograph": photograph}:
            finished.add(index)
            return True
        return store is not None and in_store(store, photograph)

    with contextlib.ExitStack() as stack:
        results = stack.enter_context(
            contextlib.closing(
                stream(photographs, vit, spec, skip=skip, n_threads=n_threads, batch=batch, max_pixels=max_pixels)
            )
        )
        writer = None if store is None else stack.enter_context(ShardWriter(store))
        for result in results:
            source, path, features = path_of(photographs[result.index]), paths[result.index], result.features
            if result.error is not None:
                yield Outcome(source, "failed", error=result.error)
                continue
            if result.index in finished:
                yield Outcome(source, "skipped", path)
                continue
            if features is None:
                features = store.entry(result.photograph)
            elif writer is not None:
                writer.add(features)
            try:
                if not overwrite and stamp(path) is None:
                    refuse_foreign([path])
                write.make_folder(path.parent)
                write_file(
                    path, features, {**facts, "vitnp:parameters": parameters, "vitnp:photograph": features.photograph}
                )
            except OutputError as error:
                yield Outcome(source, "failed", error=error)
            else:
                yield Outcome(source, "done", path, features=features)


def metadata_of(vit: ViT, spec: FeatureSpec) -> dict[str, object]:
    """What a file tells of its making, the same for all photographs of a run."""
    facts = {"model": vit.name, "patch": vit.config.patch, **spec.as_stored(), "version": __version__}
    # The file holds the same with and without.
    del facts["regions"]
    return facts


def write_file(path: Path, features: FeatureRecord, metadata: Mapping[str, object]) -> None:
    """Write the features of one photograph.

    Parameters
    ----------
    path : Path
        Ends in ``.npz`` or ``.safetensors``.
    features : FeatureRecord
        The file gets "keys" (rows, columns, D), "attention" (rows, columns) and "cls" (D,).
    metadata : mapping
        Goes with them; the photograph's size and the size at which the network saw it are added.

    Raises
    ------
    OutputError
        When it can't be written.
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
        # Keys are close to noise: deflating them takes long and saves next to nothing.
        write.write_npz(path, arrays, metadata, compressed=False)
        return
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    write_safetensors(path, arrays, {"Software": f"vitnp {__version__}", **texts})


def stamp(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """What vitnp noted in a file of features, as :func:`vitnp.io.stamp.stamp` tells it of other files."""
    if os.fspath(path).endswith(".npz"):
        return stamp_.stamp(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    if not metadata.get("Software", "").startswith("vitnp "):
        return None
    return {name: value for name, value in metadata.items() if name.startswith("vitnp:")}

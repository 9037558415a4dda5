"""Recognize what an earlier run over a collection has finished, so that nothing is done twice."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from vitnp.errors import CheckpointError, ImageError
from vitnp.export.collection_outputs import outputs_of
from vitnp.export.outcome import Outcome
from vitnp.io import decode, headers, stamp
from vitnp.io.find import Photograph
from vitnp.io.georeference import is_georeferenced
from vitnp.kernels.threads import pool
from vitnp.masks.cutout_options import DEFAULT_CUTOUT, CutoutOptions
from vitnp.method.collection import Collection
from vitnp.outputs import expected_stamp, output_paths
from vitnp.segmenter import Segmenter


@dataclasses.dataclass(frozen=True)
class RerunKeys:
    """Entry "rerun" of ``run.json``: the hashes by which a later run recognizes its outputs.

    Attributes
    ----------
    settings : str
        Everything that the outputs depend on besides the content of the photographs.
    photographs : str
        Content of all photographs, see :func:`photographs_hash`.
    results, labels : str
        Stamps of the outputs of each photograph, and of the label images.
    collection : str
        Digest of the fitted collection.
    """

    settings: str
    photographs: str
    results: str
    labels: str
    collection: str

    @classmethod
    def read(cls, path: Path) -> RerunKeys | None:
        """Read the keys from the record of a run; None if there is none or it is damaged."""
        if not path.is_file():  # opening a pipe would wait for its writer
            return None
        try:
            entry = json.loads(path.read_bytes())["rerun"]
            keys = [entry[field.name] for field in dataclasses.fields(cls)]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return cls(*keys) if all(isinstance(key, str) for key in keys) else None


def photographs_hash(fingerprints: Sequence[str | None]) -> str:
    """Return one fingerprint of all photographs, from that of each; None for a photograph that cannot be read."""
    return stamp.parameters_hash({"photographs": fingerprints})


@dataclasses.dataclass(frozen=True)
class EarlierRun:
    """The outputs that an earlier run with the same settings may have left.

    Attributes
    ----------
    keys : RerunKeys
        Of the earlier run.
    segmenter : Segmenter
        Not fitted; its settings are those of the run to come.
    photographs : sequence of Photograph
    stems : sequence of Path
        What the names of each photograph's files begin with.
    which : sequence of str
        Kinds of output for each photograph.
    out : Path
        Folder of the outputs of the collection.
    save_collection : Path, optional
        File of the fitted collection.
    cutout : CutoutOptions
        Background and crop of cutouts.
    """

    keys: RerunKeys
    segmenter: Segmenter
    photographs: Sequence[Photograph]
    stems: Sequence[Path]
    which: Sequence[str]
    out: Path
    save_collection: Path | None = None
    cutout: CutoutOptions = DEFAULT_CUTOUT

    def outcomes(self) -> list[Outcome] | None:
        """Return the outcomes of all photographs if every output exists and is up to date, else None."""
        if not (self._has_collection_outputs() and self._has_collection_file()):
            return None
        outcomes, fingerprints = [], []
        n_threads = pool.resolve_n_threads(self.segmenter.n_threads)
        with contextlib.closing(pool.map_ordered(self._outcome, range(len(self.photographs)), n_threads)) as checked:
            for outcome, fingerprint in checked:
                if outcome is None:
                    return None
                outcomes.append(outcome)
                fingerprints.append(fingerprint)
        return outcomes if photographs_hash(fingerprints) == self.keys.photographs else None

    def _has_collection_outputs(self) -> bool:
        """Tell whether the files about the collection exist; ``run.json``, written last, vouches for their content."""
        outputs = outputs_of(has_classes=self.segmenter.n_classes is not None)
        return all((self.out / output.name).is_file() for output in outputs)

    def _has_collection_file(self) -> bool:
        """Tell whether the fitted collection is saved, if it is asked for."""
        if self.save_collection is None:
            return True
        try:
            return Collection.load(self.save_collection).digest == self.keys.collection
        except CheckpointError:
            return False

    def _outcome(self, index: int) -> tuple[Outcome | None, str | None]:
        """Return the outcome of a photograph and its fingerprint; no outcome if there is work to do."""
        path, has_classes = self.photographs[index].path, self.segmenter.n_classes is not None
        georeferenced = is_georeferenced(path)
        files = output_paths(self.stems[index], self.which, labels=has_classes, georeferenced=georeferenced)
        try:
            fingerprint = headers.file_hash(path)
            if all(
                stamp.stamp(file)
                == expected_stamp(
                    kind,
                    {
                        "vitnp:parameters": self.keys.labels if kind == "labels" else self.keys.results,
                        "vitnp:photograph": fingerprint,
                    },
                    self.cutout,
                )
                for kind, file in files.items()
            ):
                return Outcome(path, files), fingerprint
            decode.decode_image(path, max_pixels=self.segmenter.settings.max_pixels)
        except ImageError as error:  # a photograph that could not be read then, and cannot now
            return Outcome(path, {}, error), None
        return None, None

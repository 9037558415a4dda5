"""Segment a collection of photographs and write all of its outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp.cached import cached_property
from vitnp.errors import ImageError, OutputError, UsageError, VitnpError
from vitnp.export.collection_outputs import (
    PREVIEWS,
    RUN_RECORD,
    CollectionInfo,
    check_collection_file,
    outputs_of,
    refuse_foreign_outputs,
    remove_stale_outputs,
)
from vitnp.export.outcome import Facts, Outcome
from vitnp.export.output_folder import refuse_foreign_folder
from vitnp.export.per_image import MAX_LABELS
from vitnp.export.photograph_record import fitted_record
from vitnp.export.rerun import EarlierRun, RerunKeys, photographs_hash
from vitnp.export.rewrite import set_polygons
from vitnp.export.run_record import failure_records, run_record
from vitnp.export.writer import Writer
from vitnp.io import find, label_png, stamp, write
from vitnp.io.georeference import is_georeferenced
from vitnp.io.part_files import remove_abandoned
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.masks.cutout_options import DEFAULT_CUTOUT, CutoutOptions
from vitnp.method.collection import Collection
from vitnp.outputs import output_paths, write_outputs
from vitnp.result import Segmentation
from vitnp.segmenter import Segmenter


@dataclasses.dataclass
class CollectionRun:
    """One run over a collection: fit, segment, write.

    Parameters
    ----------
    segmenter : Segmenter
        Not fitted yet.
    photographs : sequence of Photograph
    stems : sequence of Path
        What the names of each photograph's files begin with.
    which : sequence of str
        Kinds of output for each photograph, see :meth:`vitnp.result.Segmentation.save`.
    out : Path, optional
        Folder of the outputs of the collection, see :mod:`vitnp.export.collection_outputs`; None for no such outputs.
    polygons : float, optional
        Polygons in annotations.json, simplified within so many pixels, instead of run lengths.
    overwrite : bool
        Redo finished work, and replace files that vitnp did not write.
    unread : sequence of VitnpError
        Failures before the run, for its record.
    save_collection : Path, optional
        File of the fitted collection.
    cutout : CutoutOptions
        Background and crop of cutouts.

    Attributes
    ----------
    unchanged : bool
        Whether an earlier run had finished everything.
    finished : bool
        Whether this run has written everything.

    Raises
    ------
    UsageError
        If there are more classes than a label image can hold.
    """

    segmenter: Segmenter
    photographs: Sequence[find.Photograph]
    stems: Sequence[Path]
    which: Sequence[str]
    out: Path | None = None
    polygons: float | None = None
    overwrite: bool = False
    unread: Sequence[VitnpError] = ()
    save_collection: Path | None = None
    cutout: CutoutOptions = DEFAULT_CUTOUT
    unchanged: bool = dataclasses.field(default=False, init=False)
    finished: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        if (self.segmenter.n_classes or 0) > MAX_LABELS:
            raise UsageError(
                f"n_classes must be from 1 to {MAX_LABELS} where label images are written, "
                f"got {self.segmenter.n_classes}"
            )
        self._facts: dict[int, Facts] = {}
        self._errors: dict[int, ImageError | OutputError] = {}
        self._capped: set[int] = set()
        self._empty: set[int] = set()  # photographs without foreground

    def outcomes(self) -> Iterator[Outcome]:
        """Fit, segment and write everything.

        If an earlier run with the same settings over the same photographs has finished, nothing is done, except that
        photographs that could not be read are tried again.

        Yields
        ------
        Outcome
            One per photograph, in order.

        Raises
        ------
        UsageError
            If the collection cannot be fitted with these settings.
        OutputError
            If an output of the collection cannot be written.
        """
        self._check_outputs()
        outcomes = self._finished_before()
        if outcomes is not None:
            self.unchanged = True
            if self.out is not None:
                set_polygons(self.out, self.polygons)
            yield from outcomes
            return
        if self.out is not None:
            write.prepare_folder(self.out)
        try:
            self.segmenter.fit([photograph.path for photograph in self.photographs], observe=self._write_photograph)
        except ImageError:  # none of them could be read
            self._errors.update(self.segmenter.failures)
            for index, error in sorted(self._errors.items()):
                yield Outcome(self.photographs[index].path, {}, error)
            return
        self._errors.update(self.segmenter.failures)
        clock = Stopwatch()
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(writer) for writer in self._writers()]
            advance = stack.enter_context(self.segmenter.progress("files", len(self.photographs)))
            for index in range(len(self.photographs)):
                outcome = self._finish(index, writers)
                advance(1)
                yield outcome
        if self.save_collection is not None:
            self.segmenter.save(self.save_collection)
        self.finished = True
        if self.out is not None:
            remove_stale_outputs(self.out, has_classes=self.segmenter.n_classes is not None)
            clock.lap("files")
            write.write_json(self.out / RUN_RECORD, self._record({**self.segmenter.seconds, **clock.seconds}))

    @property
    def progress_so_far(self) -> str:
        """What an interrupted run has left, in words."""
        written = f"the files of {len(self._facts)} of {len(self.photographs)} photographs are written"
        cache = self.segmenter.cache
        if cache is None:
            return written
        return f"{written}; features are in {cache}, and the same command continues from them"

    # --- before the run ----------------------------------------------------------------------------------------------

    def _check_outputs(self) -> None:
        """Check before any work that the outputs of the collection can be written and replace no foreign file."""
        for folder in {stem.parent for stem in self.stems} | ({self.out} if self.out else set()):
            remove_abandoned(folder)
        if self.out is not None:
            write.make_folder(self.out)
            if not self.overwrite:
                refuse_foreign_outputs(self.out)
            refuse_foreign_folder(self.out / PREVIEWS)  # a folder is never replaced with all that it holds
        if self.save_collection is not None:
            check_collection_file(self.save_collection, overwrite=self.overwrite)

    def _finished_before(self) -> list[Outcome] | None:
        """Return the outcomes of an earlier run if it has finished everything, else None.

        In the latter case the record of the earlier run is removed, because its files are about to change.
        """
        if self.out is None:
            return None
        record = self.out / RUN_RECORD
        keys = None if self.overwrite else RerunKeys.read(record)
        outcomes = None
        if keys is not None and keys.settings == self._settings_hash:
            outcomes = EarlierRun(
                keys,
                self.segmenter,
                self.photographs,
                self.stems,
                self.which,
                self.out,
                self.save_collection,
                self.cutout,
            ).outcomes()
        if outcomes is None:
            try:
                record.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"cannot replace {record}: {error.strerror}; check the permissions of its folder"
                ) from None
        return outcomes

    @property
    def _settings_hash(self) -> str:
        """Hash of everything that the outputs depend on besides the content of the photographs."""
        return stamp.parameters_hash(
            {
                **self.segmenter.fit_parameters,
                "photographs": [photograph.relative for photograph in self.photographs],
                # Relative, so that another spelling of the same folder makes no difference.
                "stems": [os.path.relpath(stem, self.out) for stem in self.stems],
                "save": self.which,
                "cutout": self.cutout.stamp,
            }
        )

    # --- the files of a photograph -----------------------------------------------------------------------------------

    def _write_photograph(self, index: int, result: Segmentation) -> None:
        """Write a photograph's outputs as soon as its mask is known; called from several threads."""
        try:
            # The label image is written at the end, but its name is known.
            files = self._files(index)
            write.check_names(files.values())
            if not self.overwrite:
                stamp.refuse_foreign(files.values())
            clock = Stopwatch()
            write_outputs(result, self.stems[index], self.which, self.cutout)
            clock.lap("write")
        except OutputError as error:
            self._errors[index] = error
            return
        self._facts[index] = Facts.of(result, clock.seconds)
        if result.capped:
            self._capped.add(index)
        if not result.share:
            self._empty.add(index)

    def _files(self, index: int) -> dict[str, Path]:
        """Return the paths of a photograph's outputs, by kind."""
        georeferenced = is_georeferenced(self.photographs[index].path)
        has_classes = self.segmenter.n_classes is not None
        return output_paths(self.stems[index], self.which, labels=has_classes, georeferenced=georeferenced)

    def _finish(self, index: int, writers: Sequence[Writer]) -> Outcome:
        """Write what depends on the classes: the label image, and the outputs of the collection."""
        path = self.photographs[index].path
        try:
            if index in self._errors:
                raise self._errors[index]
            has_classes = self.segmenter.n_classes is not None
            files = self._files(index)
            photograph = fitted_record(
                self.segmenter, index, self.photographs[index], files, empty=index in self._empty
            )
            facts = dataclasses.replace(self._facts[index])
            label_file = output_paths(self.stems[index], (), labels=True)["labels"]
            if has_classes:
                facts.classes, facts.category = photograph.labels, photograph.category
                self._write_labels(index, label_file, photograph.label_map)
            elif label_file not in self._inputs and stamp.is_own_output(label_file):
                # Labels of an earlier run with classes do not belong to the new mask.
                label_file.unlink(missing_ok=True)
            for writer in writers:
                writer.add(photograph)
            return Outcome(path, files, facts=facts, capped=index in self._capped)
        except (ImageError, OutputError) as error:
            self._errors[index] = error
            return Outcome(path, {}, error)

    def _write_labels(self, index: int, path: Path, labels: np.ndarray) -> None:
        if path in self._inputs:
            raise OutputError(f"{path}: this is one of the photographs; give --out DIR to write elsewhere")
        if not self.overwrite:
            stamp.refuse_foreign([path])
        entries = {"vitnp:parameters": self._labels_hash, "vitnp:photograph": self.segmenter.fingerprints[index] or ""}
        label_png.write_labels(path, labels, entries)

    @cached_property
    def _inputs(self) -> frozenset[Path]:
        return frozenset(photograph.path for photograph in self.photographs)

    @property
    def _labels_hash(self) -> str:
        """Hash of everything that a label image depends on besides the photograph."""
        return stamp.parameters_hash({**self.segmenter.result_parameters, "classes": self.segmenter.n_classes})

    # --- the outputs of the collection -------------------------------------------------------------------------------

    def _writers(self) -> Iterator[Writer]:
        """Create the writers of the outputs of the collection."""
        if self.out is not None:
            prototypes = self._collection.prototypes
            info = CollectionInfo(
                n_photographs=len(self.photographs),
                n_labels=1 if prototypes is None else int(prototypes.classes.max()) + 1,
                has_classes=self.segmenter.n_classes is not None,
                tolerance=self.polygons,
                failures=lambda: failure_records(self._failures),
            )
            for output in outputs_of(has_classes=info.has_classes):
                yield output.create(self.out / output.name, info)

    @property
    def _collection(self) -> Collection:
        collection = self.segmenter.collection
        if collection is None:
            raise UsageError("nothing is fitted yet; call outcomes first")
        return collection

    @property
    def _failures(self) -> list[tuple[object, VitnpError]]:
        """What could not be segmented, and why."""
        failures: list[tuple[object, VitnpError]] = [
            (self.photographs[index].path, error) for index, error in sorted(self._errors.items())
        ]
        return failures + [(_path_of(error), error) for error in self.unread]

    def _record(self, seconds: Mapping[str, float]) -> dict[str, object]:
        """Return the content of ``run.json``."""
        segmenter, collection, failures = self.segmenter, self._collection, self._failures
        keys = RerunKeys(
            settings=self._settings_hash,
            photographs=photographs_hash(
                [
                    None if index in self._errors else fingerprint
                    for index, fingerprint in enumerate(segmenter.fingerprints)
                ]
            ),
            results=stamp.parameters_hash(segmenter.result_parameters),
            labels=self._labels_hash,
            collection=collection.digest,
        )
        record = run_record(
            parameters={
                **segmenter.fit_parameters,
                **collection.parameters,
                "levels": "all",
                "classes": segmenter.n_classes,
                "categories": len(collection.categories),
                "save": list(self.which),
                "polygons": self.polygons,
            },
            checkpoint=segmenter.vit.name,
            checkpoint_sha256=segmenter.vit.sha256,
            seeds=[segmenter.settings.seed],
            seconds=seconds,
            photographs={
                "found": len(self.photographs) + len(self.unread),
                "done": len(self.photographs) - len(self._errors),
                "failed": len(failures),
            },
            failures=failures,
        )
        return {**record, "rerun": dataclasses.asdict(keys)}


def _path_of(error: VitnpError) -> str:
    """Return the path that an error before the run is about."""
    path = error.path if isinstance(error, ImageError) else None
    return str(error).partition(": ")[0] if path is None else path

"""A collection of photographs segmented together, and everything that is written about it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp import __version__
from vitnp.errors import CheckpointError, ImageError, OutputError, UsageError, VitnpError
from vitnp.export import run_record
from vitnp.export.coco import CocoWriter, class_names
from vitnp.export.contact_sheet import COLUMNS, write_contact_sheet
from vitnp.export.gallery import GalleryWriter
from vitnp.export.per_image import Facts, Outcome
from vitnp.io import decode, find, headers, label_png, stamp, write
from vitnp.io.resample import downscale
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import pool
from vitnp.method.collection import Collection
from vitnp.outputs import output_paths
from vitnp.result import Segmentation
from vitnp.segmenter import Segmenter

# Short side in pixels of what gallery and contact sheet are made from.
THUMBNAIL = 240

# What stands beside the photographs' own files, in the folder that is written to.
RUN_FILES = ("annotations.json", "classes.json", "contact-sheet.png", "gallery.html", "run.json")


@dataclasses.dataclass
class CollectionRun:
    """One run over a collection.

    Parameters
    ----------
    segmenter : Segmenter
        Not fitted yet.
    photographs : sequence of Photograph
    stems : sequence of Path
        What each photograph's files begin with.
    which : sequence of str
        Kinds of output for each photograph, see :meth:`vitnp.Segmentation.save`.
    out : Path, optional
        Folder for what is written about the run as a whole; None for nothing.
    polygons : bool
        Polygons in annotations.json, instead of run lengths.
    overwrite : bool
        Do anew what is done already, and replace files that vitnp did not write.
    unread : sequence of VitnpError
        What failed before the run, for the record.
    save_collection : Path, optional
        File for what was learnt.

    Attributes
    ----------
    unchanged : bool
        Whether an earlier run had left everything already.
    """

    segmenter: Segmenter
    photographs: Sequence[find.Photograph]
    stems: Sequence[Path]
    which: Sequence[str]
    out: Path | None = None
    polygons: bool = False
    overwrite: bool = False
    unread: Sequence[VitnpError] = ()
    save_collection: Path | None = None
    unchanged: bool = dataclasses.field(default=False, init=False)
    finished: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        if (self.segmenter.n_classes or 0) > 255:
            raise UsageError(f"files of labels can't hold {self.segmenter.n_classes} classes; choose 1 to 255")
        self._facts: dict[int, Facts] = {}
        self._errors: dict[int, VitnpError] = {}
        self._capped: set[int] = set()

    def outcomes(self) -> Iterator[Outcome]:
        """Fit, segment and write everything; one outcome a photograph, in order.

        Where an earlier run with the same settings over the same photographs has left everything already, nothing is done: only the
        photographs that couldn't be read are tried again.

        Raises
        ------
        UsageError
            When the collection can't be fitted as asked.
        OutputError
            When what is written about the run as a whole can't be written.
        """
        self._prepare()
        done_before = self._done_before()
        if done_before is not None:
            self.unchanged = True
            yield from done_before
            return
        try:
            self.segmenter.fit([photograph.path for photograph in self.photographs], observe=self._write_photograph)
        except ImageError:  # not a single one could be read
            self._errors.update(self.segmenter.failures)
            yield from (
                Outcome(self.photographs[index].path, {}, error) for index, error in sorted(self._errors.items())
            )
            return
        self._errors.update(self.segmenter.failures)
        clock = Stopwatch()
        with contextlib.ExitStack() as stack:
            names = class_names(self._classes)
            coco = gallery = None
            if self.out is not None:
                coco = stack.enter_context(CocoWriter(self.out / RUN_FILES[0], names, polygons=self.polygons))
                gallery = stack.enter_context(
                    GalleryWriter(self.out / "gallery.html", names, total=len(self.photographs))
                )
            advance = stack.enter_context(self.segmenter.progress("files", len(self.photographs)))
            for index in range(len(self.photographs)):
                outcome = self._conclude(index, coco, gallery)
                advance(1)
                yield outcome
        if self.save_collection is not None:
            self.segmenter.save(self.save_collection)
        self.finished = True
        if self.out is not None:
            self._write_about_classes(names)
            clock.lap("files")
            write.write_json(self.out / "run.json", self._record({**self.segmenter.seconds, **clock.seconds}))

    @property
    def progress_so_far(self) -> str:
        """What there is of a run that was broken off."""
        there = f"the files of {len(self._facts)} of {len(self.photographs)} photographs are written"
        cache = self.segmenter.cache
        return there if cache is None else f"{there}; features are in {cache}, and the same command goes on from them"

    def _prepare(self) -> None:
        """See before any work that nothing of somebody else's is in the way."""
        if self.out is not None:
            write.make_folder(self.out)
            if not self.overwrite:
                _refuse_foreign(self.out)
        if self.save_collection is not None:
            write.make_folder(self.save_collection.parent)
            if self.save_collection.is_dir():
                raise OutputError(
                    f"{self.save_collection}: this is a folder; name a file, such as {self.save_collection / 'fitted.safetensors'}"
                )
            if not os.access(self.save_collection.parent, os.W_OK):
                raise OutputError(
                    f"can't write {self.save_collection}: no permission to write there; choose another folder"
                )
            if not self.overwrite and self.save_collection.exists():
                try:
                    Collection.load(self.save_collection)
                except CheckpointError:
                    raise OutputError(
                        f"{self.save_collection}: this file exists and is no fitted collection; move it away or give --overwrite"
                    ) from None

    # --- What an earlier run has left -------------------------------------------------------------------------------------

    @property
    def _settings_hash(self) -> str:
        """Fingerprint of everything that the files depend on beside the photographs' content."""
        return stamp.parameters_hash(
            {
                **self.segmenter.fit_parameters,
                "photographs": [photograph.relative for photograph in self.photographs],
                # However the folder is spelled today.
                "stems": [os.path.relpath(stem, self.out) for stem in self.stems],
                "save": self.which,
                "polygons": self.polygons,
            }
        )

    def _done_before(self) -> list[Outcome] | None:
        """Outcomes, when everything that a run would make is there; else None, and the record of an earlier run is gone.

        The record is written last: where there is one, the files about the run as a whole are those that it speaks of.
        """
        if self.out is None:
            return None
        record = self.out / "run.json"
        rerun = {} if self.overwrite else _rerun_facts(record)
        outcomes = self._outcomes_before(rerun) if rerun.get("settings") == self._settings_hash else None
        if outcomes is None:
            try:
                record.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{record}: it can't be replaced ({error.strerror}); check the permissions of its folder"
                ) from None
        return outcomes

    def _outcomes_before(self, rerun: Mapping[str, str]) -> list[Outcome] | None:
        expected = [name for name in RUN_FILES if name != "classes.json" or self.segmenter.n_classes is not None]
        if not all((self.out / name).is_file() for name in expected):
            return None
        if self.save_collection is not None:
            try:
                if Collection.load(self.save_collection).digest != rerun.get("collection"):
                    return None
            except CheckpointError:
                return None
        found = []
        work = functools.partial(self._look_at, rerun)
        with contextlib.closing(
            pool.map_ordered(work, range(len(self.photographs)), pool.resolve_n_threads(self.segmenter.n_threads))
        ) as looked_at:
            for outcome, fingerprint in looked_at:
                if outcome is None:
                    return None
                found.append((outcome, fingerprint))
        if _all_of([fingerprint for _, fingerprint in found]) != rerun.get("photographs"):
            return None
        return [outcome for outcome, _ in found]

    def _look_at(self, rerun: Mapping[str, str], index: int) -> tuple[Outcome | None, str | None]:
        """What an earlier run has left of one photograph, and the fingerprint that it then had; no outcome when there is work to do."""
        path = self.photographs[index].path
        files = output_paths(self.stems[index], self.which)
        stamps = dict.fromkeys(files, rerun.get("results"))
        if self.segmenter.n_classes is not None:
            files["labels"], stamps["labels"] = (
                output_paths(self.stems[index], (), labels=True)["labels"],
                rerun.get("labels"),
            )
        try:
            fingerprint = headers.file_hash(path)
            if all(
                stamp.stamp(file) == {"vitnp:parameters": stamps[kind], "vitnp:photograph": fingerprint}
                for kind, file in files.items()
            ):
                return Outcome(path, files), fingerprint
            decode.read_image(path, max_pixels=self.segmenter.settings.max_pixels)
        except ImageError as error:  # as before
            return Outcome(path, {}, error), None
        return None, None

    # --- Files ------------------------------------------------------------------------------------------------------------

    @property
    def _classes(self) -> int:
        """How many labels there are beside background; one, when no classes were asked for."""
        prototypes = self.segmenter.collection.prototypes
        return 1 if prototypes is None else int(prototypes.classes.max()) + 1

    def _write_photograph(self, index: int, result: Segmentation) -> None:
        """A photograph's own files, as soon as its mask is known; called from several threads."""
        try:
            if not self.overwrite:
                stamp.refuse_foreign(output_paths(self.stems[index], self.which).values())
            clock = Stopwatch()
            result.save(self.stems[index], self.which)
            clock.lap("write")
        except OutputError as error:
            self._errors[index] = error
            return
        self._facts[index] = Facts.of(result, clock.seconds)
        if result.capped:
            self._capped.add(index)

    def _conclude(self, index: int, coco: CocoWriter | None, gallery: GalleryWriter | None) -> Outcome:
        """What had to wait for the classes: labels, annotations, the gallery's card."""
        path = self.photographs[index].path
        try:
            if index in self._errors:
                raise self._errors[index]
            files = output_paths(self.stems[index], self.which)
            label_map = self.segmenter.labels[index]
            facts = dataclasses.replace(self._facts[index])
            if self.segmenter.n_classes is not None:
                regions = self.segmenter.regions[index]
                facts.classes = sorted({int(label) + 1 for label in regions.classes})
                facts.category = int(self.segmenter.categories[index])
                files["labels"] = output_paths(self.stems[index], (), labels=True)["labels"]
                if files["labels"] in self._inputs:
                    raise OutputError(
                        f"{files['labels']}: this is one of the photographs; give --out DIR to write elsewhere"
                    )
                if not self.overwrite:
                    stamp.refuse_foreign([files["labels"]])
                label_png.write_labels(files["labels"], label_map, self._stamp(index))
            else:
                self._remove_old_labels(output_paths(self.stems[index], (), labels=True)["labels"])
            if gallery is not None:
                name = self.photographs[index].relative.as_posix()
                thumbnail = self._thumbnail(index) if gallery.wants_next else None
                if thumbnail is None:
                    gallery.skip()
                else:
                    gallery.add(name, thumbnail, label_map, float(self.segmenter.confidences[index]))
                coco.add(name, label_map.shape, self._annotated(index, label_map))
            return Outcome(path, files, facts=facts, capped=index in self._capped)
        except (ImageError, OutputError) as error:
            self._errors[index] = error
            return Outcome(path, {}, error)

    def _remove_old_labels(self, path: Path) -> None:
        """Labels of an earlier run would stand beside masks that they don't belong to."""
        if path not in self._inputs and stamp.is_own_output(path):
            path.unlink(missing_ok=True)

    @functools.cached_property
    def _inputs(self) -> frozenset[Path]:
        return frozenset(photograph.path for photograph in self.photographs)

    @property
    def _labels_hash(self) -> str:
        return stamp.parameters_hash({**self.segmenter.result_parameters, "classes": self.segmenter.n_classes})

    def _stamp(self, index: int) -> dict[str, str]:
        return {"vitnp:parameters": self._labels_hash, "vitnp:photograph": self.segmenter.fingerprints[index]}

    def _thumbnail(self, index: int) -> np.ndarray | None:
        """The photograph, small; None when it's gone since: gallery and contact sheet do without."""
        try:
            rgb = decode.read_image(self.photographs[index].path, max_pixels=self.segmenter.settings.max_pixels)
        except ImageError:
            return None
        height, width = rgb.shape[:2]
        scale = min(1.0, THUMBNAIL / min(height, width))
        return downscale(rgb, (max(1, round(height * scale)), max(1, round(width * scale))))

    def _annotated(self, index: int, label_map: np.ndarray) -> Iterator[tuple[np.ndarray, int, float]]:
        """Mask, class and score of each region."""
        regions = self.segmenter.regions[index]
        if regions is None:
            yield label_map > 0, 1, float(self.segmenter.confidences[index])
            return
        numbers = self.segmenter.region_map(index)
        for region, (label, score) in enumerate(zip(regions.classes, regions.scores), 1):
            yield numbers == region, int(label) + 1, float(score)

    def _write_about_classes(self, names: Sequence[str]) -> None:
        """classes.json and the contact sheet."""
        segmenter = self.segmenter
        good = [index for index in range(len(self.photographs)) if index not in self._errors]
        paths = [self.photographs[index].relative.as_posix() for index in good]
        confidences = segmenter.confidences[good]
        if segmenter.n_classes is None:
            by_region = [
                (place, 0, confidences[place], 0) for place, index in enumerate(good) if self._facts[index].share
            ]
        else:
            by_region = [
                (place, int(label), float(typical), int(patches))
                for place, index in enumerate(good)
                for label, typical, patches in zip(
                    segmenter.regions[index].classes, segmenter.regions[index].typical, segmenter.regions[index].sizes
                )
            ]
        order = sorted(by_region, key=lambda region: (-region[2], region[0]))
        typical: list[list[int]] = [[] for _ in names]
        for place, label, _, _ in order:
            if len(typical[label]) < COLUMNS and place not in typical[label]:
                typical[label].append(place)
        columns = np.array([(place, label + 1, patches) for place, label, _, patches in by_region], np.int64).reshape(
            -1, 3
        )
        records = run_record.class_records(
            names, paths, confidences, region_class=columns[:, 1], region_photograph=columns[:, 0], region_patches=columns[:, 2],
            medoids=[places[0] if places else 0 for places in typical],
        )  # fmt: skip
        if segmenter.n_classes is None:
            (self.out / "classes.json").unlink(missing_ok=True)  # of a run that had classes
        else:
            write.write_json(self.out / "classes.json", {"software": f"vitnp {__version__}", "classes": records})
        rows = []
        for number, (name, record, places) in enumerate(zip(names, records, typical), 1):
            pictures = []
            for place in places:
                thumbnail = self._thumbnail(good[place])
                if thumbnail is not None:
                    own = segmenter.labels[good[place]] == number
                    small = downscale(
                        np.repeat(own[..., None], 3, axis=2).view(np.uint8) * np.uint8(255), thumbnail.shape[:2]
                    )
                    pictures.append((thumbnail, small[..., 0] >= 128))
            rows.append((number, f"{name}\n{record['images']} photographs", pictures))
        write_contact_sheet(self.out / "contact-sheet.png", rows)

    def _record(self, seconds: Mapping[str, float]) -> dict[str, object]:
        segmenter = self.segmenter
        failures = [(self.photographs[index].path, error) for index, error in sorted(self._errors.items())]
        failures += [(str(error).partition(": ")[0], error) for error in self.unread]
        record = run_record.run_record(
            parameters={
                **segmenter.fit_parameters, **segmenter.collection.parameters, "levels": "all", "classes": segmenter.n_classes,
                "categories": len(segmenter.collection.categories), "save": list(self.which), "polygons": self.polygons,
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
        )  # fmt: skip
        fingerprints = [
            None if index in self._errors else segmenter.fingerprints[index] for index in range(len(self.photographs))
        ]
        record["rerun"] = {
            "settings": self._settings_hash,
            "photographs": _all_of(fingerprints),
            "results": stamp.parameters_hash(segmenter.result_parameters),
            "labels": self._labels_hash,
            "collection": segmenter.collection.digest,
        }
        return record


def _all_of(fingerprints: Sequence[str | None]) -> str:
    """One fingerprint of all photographs."""
    return stamp.parameters_hash({"photographs": fingerprints})


def _rerun_facts(path: Path) -> Mapping[str, str]:
    """What a run's record says for the next run; nothing where there is none."""
    try:
        facts = json.loads(path.read_bytes())["rerun"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _refuse_foreign(folder: Path) -> None:
    """Spare files of the run's names that somebody else has put there: those are JSON or a page without vitnp's mark."""
    for name in RUN_FILES:
        path = folder / name
        if not path.exists():
            continue
        if path.suffix == ".png":
            stamp.refuse_foreign([path])
            continue
        try:
            head = _head(path)
        except OSError as error:
            raise OutputError(f"{path}: it can't be read ({error.strerror}); check its permissions") from None
        if "vitnp" not in head:
            raise OutputError(f"{path}: this file exists and vitnp didn't write it; move it away or give --overwrite")


def _head(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(4096)

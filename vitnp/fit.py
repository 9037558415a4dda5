"""One fit of a collection: from photographs to levels, masks and classes, stage by stage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.linalg  # noqa: F401  (its BLAS must be loaded before it can be kept to one thread)

from vitnp import kernels
from vitnp.clustering.agglomerative import agglomerative_clusters
from vitnp.clustering.kmeans import Mapper
from vitnp.clustering.spectral import spectral_clusters
from vitnp.errors import ImageError, UsageError
from vitnp.features import batching
from vitnp.features.entries import Entries
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import Extraction
from vitnp.features.temporary import check_space, estimate_bytes, temporary_store
from vitnp.from_features import segment_features
from vitnp.io import decode, headers
from vitnp.io.resample import downscale, working_size
from vitnp.io.spool import LabelSpool, MaskSpool
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.collection import Collection
from vitnp.method.collection_level import CollectionLevelConfig, FittedLevel, default_categories, fit_level
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.instances import Instances
from vitnp.method.lines import COUNTS, count_responses, fit_line_rule
from vitnp.method.patch_scores import ImageAnswer, judge_images, score_patches
from vitnp.method.prototypes import fit_prototypes, label_map, split_by_class, split_pixels
from vitnp.method.readout import ReadoutConfig, fit_readout, readout_targets
from vitnp.method.regions import RegionRule, Regions, label_regions, region_patches
from vitnp.options import Settings
from vitnp.pipeline import image_memory_error
from vitnp.progress import Progress
from vitnp.refine.refine import WORKING_SIDE, refine
from vitnp.result import Segmentation
from vitnp.vit.model import ViT

# Neighbors of a CLS token in the graph whose clusters are categories.
N_NEIGHBORS = 30

# Hard answers are kept in a byte, in units of which every mean over up to six numbers of clusters is a whole number.
HARD_UNITS = 240

Item = TypeVar("Item")
Result = TypeVar("Result")

# What a level is fitted on: photographs by index, constants, maximum number of patches, seed.
_FitSet = tuple[list[int], CollectionLevelConfig, "int | str", tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class FitPlan:
    """How a collection is fitted; see :class:`vitnp.segmenter.Segmenter` for each field."""

    vit: ViT
    settings: Settings
    parameters: Mapping[str, Any]
    n_classes: int | None
    n_categories: int | None
    consistency: str
    rule: RegionRule
    fit_patches: int | str
    image_level: ImageLevelConfig
    dataset_level: CollectionLevelConfig
    category_level: CollectionLevelConfig
    readout: ReadoutConfig | None
    cleaning: CleaningConfig
    levels: Collection | None
    cache: Path | None
    n_threads: int | None
    batch: int | None
    mapper: Mapper | None
    extractor: Callable[..., Extraction]
    progress: Progress
    notice: Callable[[str], None] | None

    @property
    def fit_parameters(self) -> Mapping[str, object]:
        """Everything that the answer depends on besides the photographs; known before they are fitted."""
        return {
            **self.parameters,
            "max_pixels": self.settings.max_pixels,
            "classes": self.n_classes,
            "categories": self.n_categories,
            "consistency": self.consistency,
            "fit_patches": self.fit_patches,
            "image_level": dataclasses.asdict(self.image_level),
            "dataset_level": dataclasses.asdict(self.dataset_level),
            "category_level": dataclasses.asdict(self.category_level),
            "readout": None if self.readout is None else dataclasses.asdict(self.readout),
            "cleaning": dataclasses.asdict(self.cleaning),
            "regions": dataclasses.asdict(self.rule),
            **({} if self.levels is None else {"levels": self.levels.digest}),
        }


class Fit:
    """One fit: what is known so far of the photographs, and the stages that find it.

    Parameters
    ----------
    plan : FitPlan
    photographs : list of paths, PIL images or (height, width, 3) uint8 arrays

    Attributes
    ----------
    collection, failures, categories, confidences, fingerprints, regions, seconds
        See :class:`vitnp.segmenter.Segmenter`.
    """

    collection: Collection
    categories: np.ndarray
    confidences: np.ndarray
    fingerprints: list[str | None]
    seconds: Mapping[str, float]

    def __init__(self, plan: FitPlan, photographs: list[Any]) -> None:
        self.plan, self.photographs = plan, photographs
        self.failures: dict[int, ImageError] = {}
        self.regions: list[Regions | None] = [None] * len(photographs)
        self._device = plan.vit.device
        self._masks = MaskSpool()
        self._objects = LabelSpool() if plan.settings.instances else None  # objects of each photograph, from 1
        self._grids: dict[int, tuple[int, int]] = {}
        # By photograph: the image level's answers until its mask is made, and its regions until they have classes.
        self._soft: dict[int, np.ndarray] = {}
        self._hard: dict[int, np.ndarray] = {}
        self._cls: dict[int, np.ndarray] = {}
        self._scores: dict[int, np.ndarray] = {}

    def run(self, observe: Callable[[int, Segmentation], None]) -> None:
        """Run all stages; arguments and errors as in :meth:`vitnp.segmenter.Segmenter.fit`."""
        clock = Stopwatch()
        with blas.one_blas_thread(), self._extracted() as entries:
            self.fingerprints = list(entries.hashes)
            clock.lap("features")
            self._read = [index for index in range(len(self.photographs)) if index not in self.failures]
            if not self._read:
                raise self.failures[0]
            if self.plan.rule.how == "image":  # at most one region each
                self._check_n_classes(len(self._read), len(self._read))
            self._answer_image_level(entries)
            clock.lap("image level")
            if self.plan.levels is not None:
                self._take_levels(entries, self.plan.levels)
            else:
                self._fit_categories(entries)
                clock.lap("categories")
                self._fit_levels(entries)
                clock.lap("levels")
                if self.plan.settings.domain == "lines":
                    self._fit_lines(entries)
                    clock.lap("lines")
                if self.plan.readout is not None:
                    self._fit_readout(entries, self.plan.readout)
                    clock.lap("readout")
            # Masks depend on the levels alone, not on the classes that are fitted after them.
            self._levels_digest = self.collection.digest
            self._make_masks(entries, observe)
            clock.lap("masks")
            if self.plan.n_classes is not None:
                self._fit_classes(entries, self.plan.n_classes)
                clock.lap("classes")
        self.seconds = clock.seconds

    def _answer_image_level(self, entries: Entries) -> None:
        """Answer the image level for every photograph; two bytes and one byte per patch are kept."""
        self.confidences = np.zeros(len(self.photographs))

        def work(indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray, float]]:
            answers = judge_images(
                [entries[index] for index in indices], self._device, self.plan.settings.seed,
                config=self.plan.image_level, domain=self.plan.settings.domain,
            )  # fmt: skip
            host = [(kernels.to_host(answer.soft), kernels.to_host(answer.hard)) for answer in answers]
            return [
                (soft.astype(np.float16), np.rint(hard * HARD_UNITS).astype(np.uint8), answer.confidence)
                for answer, (soft, hard) in zip(answers, host)
            ]

        size = 1 if self._device == "cpu" else batching.GPU_BATCH
        batches = [self._read[first : first + size] for first in range(0, len(self._read), size)]
        found = itertools.chain.from_iterable(self._in_flight(work, batches))
        for index, (soft, hard, confidence) in zip(self._read, self._watch(found, len(self._read), "image level")):
            self._soft[index], self._hard[index], self.confidences[index] = soft, hard, confidence

    def _take_levels(self, entries: Entries, levels: Collection) -> None:
        """Use the levels of another collection, without its classes."""
        parameters = {**levels.parameters, "regions": dataclasses.asdict(self.plan.rule)}
        self.collection = dataclasses.replace(levels, parameters=parameters, prototypes=None)
        self.categories = np.full(len(self.photographs), -1)
        self.categories[self._read] = [levels.category_of(entries[index].cls) for index in self._read]

    def _fit_categories(self, entries: Entries) -> None:
        cls = np.stack([entries[index].cls for index in self._read])
        n_categories = self.plan.n_categories or default_categories(len(self._read))
        labels = self._cluster_cls_tokens(cls, min(n_categories, len(cls)))
        self.categories = np.full(len(self.photographs), -1)
        self.categories[self._read] = labels
        self._centers = _unit_means(_unit(cls), labels)

    def _fit_levels(self, entries: Entries) -> None:
        seed = self.plan.settings.seed
        sets: list[_FitSet] = [(self._read, self.plan.dataset_level, self.plan.fit_patches, (seed, 1))]
        for category in range(len(self._centers)):
            members = [index for index in self._read if self.categories[index] == category]
            limit: int | str = "all" if self.plan.fit_patches == "all" else self.plan.category_level.sample
            sets.append((members, self.plan.category_level, limit, (seed, 2, category)))

        def work(item: _FitSet) -> FittedLevel:
            indices, config, limit, seed = item
            keys, hard = self._sample(entries, indices, limit, seed)
            return fit_level(
                keys, hard, seed, config, mapper=self.plan.mapper, n_threads=self.plan.n_threads, device=self._device,
                domain=self.plan.settings.domain,
            )  # fmt: skip

        # One after the other: each is parallel inside.
        dataset, *categories = self._watch(map(work, sets), len(sets), "levels")
        parameters = {
            **self.plan.parameters,
            "consistency": self.plan.consistency,
            "temperatures": {"dataset": dataset.temperature, "category": categories[0].temperature},
            "image_level": dataclasses.asdict(self.plan.image_level),
            "cleaning": dataclasses.asdict(self.plan.cleaning),
            "regions": dataclasses.asdict(self.plan.rule),
            "fit_patches": self.plan.fit_patches,
            "photographs": len(self._read),
        }
        self.collection = Collection(parameters, dataset, tuple(categories), self._centers)

    def _sample(
        self, entries: Entries, indices: Sequence[int], limit: int | str, seed: tuple[int, ...]
    ) -> tuple[Any, np.ndarray]:
        """Draw at most `limit` patches of photographs: their keys, and the hard answers for them."""
        hard = [self._hard[index] for index in indices]
        if isinstance(limit, str):
            return entries.keys(indices), np.concatenate(hard) / np.float32(HARD_UNITS)
        keys, rows = entries.sample(indices, [len(part) for part in hard], limit, seed)
        return keys, np.concatenate([part[drawn] for part, drawn in zip(hard, rows)]) / np.float32(HARD_UNITS)

    def _fit_readout(self, entries: Entries, config: ReadoutConfig) -> None:
        """Fit the readout to the masks that the levels make so far, of a sample of the photographs."""
        seed = (self.plan.settings.seed, 3)
        certain = [index for index in self._read if self.confidences[index] >= config.min_confidence] or self._read
        n_drawn = min(config.photographs, len(certain))
        drawn = np.sort(np.random.default_rng(seed).choice(certain, n_drawn, replace=False)).tolist()

        def work(index: int) -> tuple[np.ndarray, np.ndarray] | None:
            photograph, features = self.photographs[index], entries[index]
            try:
                with _large_photograph_lock(photograph), image_memory_error(self._device):
                    image = self._reread(photograph, features)
                    patches = score_patches(
                        features, self._image_answer(index), self._device, self.collection, int(self.categories[index])
                    )
                    # Patches are coarse, so the full size of a large photograph would change nothing.
                    height, width = image.rgb.shape[:2]
                    small = downscale(image.rgb, working_size(height, width, WORKING_SIDE))
                    soft = kernels.to_host(refine(patches.score, small))
            except ImageError:  # it was readable before; making its mask will report it
                return None
            targets = readout_targets(soft, features.grid, config.sharpness)
            n_patches = min(config.patches, features.patches)
            rng = np.random.default_rng((*seed, features.digest))
            rows = np.sort(rng.choice(features.patches, n_patches, replace=False))
            return _unit(features.keys[rows]), targets[rows]

        parts = [part for part in self._each(work, drawn, "readout") if part is not None]
        if not parts:
            return
        keys, targets = (np.concatenate(each) for each in zip(*parts))
        weights = np.concatenate([np.full(len(part[1]), 1 / len(part[1])) for part in parts])
        readout = fit_readout(keys, targets, weights, config.ridge)
        parameters = {**self.collection.parameters, "readout": dataclasses.asdict(config)}
        self.collection = dataclasses.replace(self.collection, parameters=parameters, readout=readout)

    def _fit_lines(self, entries: Entries) -> None:
        """Find sign and thresholds of lines, from the responses of all photographs."""

        def work(index: int) -> np.ndarray:
            photograph = self.photographs[index]
            try:
                with _large_photograph_lock(photograph):
                    return count_responses(self._reread(photograph, entries[index]).rgb)
            except ImageError:  # it was readable before; making its mask will report it
                return np.zeros(COUNTS, np.int64)

        rule = fit_line_rule(sum(self._each(work, self._read, "lines"), np.zeros(COUNTS, np.int64)))
        self.collection = dataclasses.replace(self.collection, lines=rule)

    def _reread(self, photograph: Any, features: FeatureRecord) -> decode.DecodedImage:
        """Decode a photograph whose features are known; its notices were logged when these were extracted."""
        _check_unchanged(photograph, features.photograph)
        settings = self.plan.settings
        return decode.decode_image(photograph, max_pixels=settings.max_pixels, alpha=settings.alpha)

    def _image_answer(self, index: int) -> ImageAnswer:
        """Return the image level's answer, as it is kept, on the device."""
        soft = self._soft[index].astype(np.float32)
        hard = self._hard[index] / np.float32(HARD_UNITS)
        confidence = float(self.confidences[index])
        return ImageAnswer(
            kernels.to_device(soft, self._device), kernels.to_device(hard, self._device), lambda: confidence
        )

    def _make_masks(self, entries: Entries, observe: Callable[[int, Segmentation], None]) -> None:
        """Make the masks of all photographs, and the CLS tokens of their regions if there are classes to find."""

        def work(index: int) -> ImageError | None:
            clock = Stopwatch(self._device)
            photograph, features = self.photographs[index], entries[index]
            try:
                with _large_photograph_lock(photograph), image_memory_error(self._device):
                    image = self._reread(photograph, features)
                    clock.lap("decode")
                    answer = self._image_answer(index)
                    del self._soft[index], self._hard[index]
                    result = segment_features(
                        image, features, answer, self.result_parameters, clock, self.plan.vit, self.collection,
                        int(self.categories[index]),
                    )  # fmt: skip
                    self._masks.put(index, result.mask)
                    self.confidences[index] = result.confidence
                    if self._objects is not None and result.instances is not None:
                        self._objects.put(index, result.instances.labels)
                    if self.plan.n_classes is not None:
                        self._describe_regions(index, features, result)
                    elif result.instances is not None:
                        self._describe_objects(index, features.grid, result.instances)
                    observe(index, result)
            except ImageError as error:  # it was readable before, and is gone or changed now
                return error
            return None

        for index, error in zip(self._read, self._each(work, self._read, "masks")):
            if error is not None:
                self.failures[index], self.categories[index] = error, -1
                self.fingerprints[index], self.confidences[index] = None, 0.0
        if len(self.failures) == len(self.photographs):
            raise self.failures[self._read[0]]

    def _describe_regions(self, index: int, features: FeatureRecord, result: Segmentation) -> None:
        patches = region_patches(self._whole_regions(index), features.grid)
        cls = self._region_cls_of(features)(patches)
        self._cls[index] = cls.astype(np.float16)
        mean = (patches @ result.score.ravel()) / np.maximum(patches.sum(axis=1), 1)
        scores = result.confidence * mean if result.instances is None else result.instances.confidences
        self._scores[index] = scores.astype(np.float32)

    def _region_cls_of(self, features: FeatureRecord) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from regions (G, N) of a photograph to their CLS tokens (G, D)."""
        return functools.partial(
            self.plan.vit.region_cls,
            features.cls_state,
            features.last_key,
            features.value,
            size=features.pixels,
        )

    def _describe_objects(self, index: int, grid: tuple[int, int], instances: Instances) -> None:
        """Make each object a region of its own; without classes all of them are of one, the foreground."""
        sizes = region_patches(instances.labels, grid).sum(axis=1)
        scores = instances.confidences.astype(np.float32)
        self.regions[index] = Regions(np.zeros(len(sizes), np.int64), scores, scores, sizes)
        self._grids[index] = grid

    def _fit_classes(self, entries: Entries, n_classes: int) -> None:
        owners = [index for index in self._read if index not in self.failures]
        counts = [len(self._cls[index]) for index in owners]
        self._check_n_classes(sum(counts), len(owners))
        unit = _unit(np.concatenate([self._cls.pop(index) for index in owners]))
        labels = agglomerative_clusters(unit, n_classes, seed=self.plan.settings.seed, n_threads=self.plan.n_threads)
        prototypes = fit_prototypes(unit, labels)
        self.collection = dataclasses.replace(self.collection, prototypes=prototypes)
        means = _unit_means(unit, labels)
        starts = np.cumsum([0, *counts])
        spans = {index: slice(start, end) for index, start, end in zip(owners, starts, starts[1:])}

        def work(index: int) -> Regions:
            part, features = spans[index], entries[index]
            patches = region_patches(self._whole_regions(index), features.grid)
            typical = (unit[part] * means[labels[part]]).sum(axis=1)
            regions = Regions(labels[part], self._scores.pop(index), typical, patches.sum(axis=1))
            if self.plan.rule.how != "split":
                return regions
            region_cls = self._region_cls_of(features)
            seed = (self.plan.settings.seed, features.digest)
            return split_by_class(
                regions, patches, features.unit, features.grid, region_cls, prototypes, seed, self.plan.rule
            )

        for index, regions in zip(owners, self._each(work, owners, "classes")):
            self.regions[index], self._grids[index] = regions, entries[index].grid

    def _check_n_classes(self, n_regions: int, n_photographs: int) -> None:
        if self.plan.n_classes is not None and n_regions < self.plan.n_classes:
            raise UsageError(
                f"n_classes must be at most the number of regions, {n_regions} in {n_photographs} photographs, "
                f"got {self.plan.n_classes}; ask for fewer classes"
            )

    def _whole_regions(self, index: int) -> np.ndarray:
        if self._objects is not None:
            return self._objects.get(index).astype(np.uint16)
        mask = self._masks.get(index)
        with pool.large_image_lock(mask.size):
            return label_regions(mask, self.plan.rule)

    def _cluster_cls_tokens(self, cls: np.ndarray, n_clusters: int) -> np.ndarray:
        """Cluster CLS tokens by the graph of their nearest neighbors."""
        # In a small collection thirty neighbors are nearly all tokens, and their graph would separate nothing.
        neighbors = min(N_NEIGHBORS, max(2, len(cls) // 5))
        return spectral_clusters(
            cls, n_clusters, neighbors=neighbors, seed=self.plan.settings.seed, n_threads=self.plan.n_threads
        )

    # --- what was found ----------------------------------------------------------------------------------------------

    def mask(self, index: int) -> np.ndarray | None:
        """Return (height, width) bool; None for a failure."""
        return None if index in self.failures else self._masks.get(index)

    def label_map(self, index: int) -> np.ndarray | None:
        """Return (height, width) uint8 or uint16, 0 for background, classes from 1; None for a failure."""
        if index in self.failures:
            return None
        regions = self.regions[index]
        if regions is None:
            return self._masks.get(index).astype(np.uint8)
        return label_map(self.region_map(index), regions.classes)

    def region_map(self, index: int) -> np.ndarray:
        """Return (height, width) uint16: 0 on the background, then the regions of ``regions[index]`` from 1.

        Raises
        ------
        UsageError
            If the photograph has no regions: without classes, or after a failure.
        """
        regions = self.regions[index]
        if regions is None:
            raise UsageError(f"photograph {index} has no regions; fit with n_classes, and see failures")
        return split_pixels(self._whole_regions(index), regions, self._grids[index])

    @property
    def result_parameters(self) -> Mapping[str, object]:
        """What a photograph's mask depends on: the settings, and the whole collection."""
        return {**self.plan.parameters, "levels": "all", "collection": self._levels_digest}

    # --- the machinery -----------------------------------------------------------------------------------------------

    def _each(self, work: Callable[[int], Result], indices: Sequence[int], stage: str) -> Iterator[Result]:
        """Yield results for photographs in their order, several in flight, with progress shown."""
        with contextlib.closing(self._in_flight(work, indices)) as results:
            yield from self._watch(results, len(indices), stage)

    def _in_flight(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
        """Yield results in order, several in flight."""

        def limited(item: Item) -> Result:
            with blas.one_blas_thread():
                return work(item)

        with contextlib.closing(
            pool.map_ordered(limited, items, pool.resolve_n_threads(self.plan.n_threads))
        ) as results:
            yield from results

    def _watch(self, results: Iterable[Result], total: int, stage: str) -> Iterator[Result]:
        with self.plan.progress(stage, total) as advance:
            for result in results:
                advance(1)
                yield result

    @contextlib.contextmanager
    def _extracted(self) -> Iterator[Entries]:
        """Give the features of the photographs, in a store that exists as long as it is needed."""
        spec = FeatureSpec.of(self.plan.vit, **self.plan.settings.of_features, regions=self.plan.n_classes is not None)
        needed = estimate_bytes(self.photographs, self.plan.vit, spec)
        with contextlib.ExitStack() as stack:
            if self.plan.cache is None:
                store = stack.enter_context(temporary_store(spec, needed=needed, notice=self.plan.notice))
            else:
                store = FeatureStore(self.plan.cache, spec, notice=self.plan.notice)
                check_space(self.plan.cache, int(needed * (1 - len(store) / max(len(store), len(self.photographs)))))
            with self.plan.progress("features", len(self.photographs)) as advance:
                extraction = self.plan.extractor(
                    self.photographs,
                    self.plan.vit,
                    store,
                    n_threads=self.plan.n_threads,
                    max_pixels=self.plan.settings.max_pixels,
                    progress=advance,
                    **({} if self.plan.batch is None else {"batch": self.plan.batch}),
                )
            self.failures.update(extraction.failures)
            yield Entries(store, extraction.hashes)


def _check_unchanged(photograph: Any, fingerprint: str) -> None:
    """Check that a file is the one that the features were made from, or the mask would lie over another picture."""
    if isinstance(photograph, (str, os.PathLike)) and headers.file_hash(photograph) != fingerprint:
        raise ImageError(f"{photograph}: the file has changed during the run; run again")


def _large_photograph_lock(photograph: Any) -> contextlib.AbstractContextManager:
    """Let large photographs pass one at a time."""
    if isinstance(photograph, (str, os.PathLike)):
        return pool.large_image_lock(headers.pixels_of(photograph))
    return contextlib.nullcontext()


def _unit(x: np.ndarray) -> np.ndarray:
    return kernels.for_device().normalize_rows(np.asarray(x, np.float32))


def _unit_means(unit: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean row of each label, of unit length: (labels, D)."""
    return _unit(np.stack([unit[labels == label].mean(axis=0) for label in range(labels.max() + 1)]))

"""Segmenter: fit a collection of photographs, segment new ones, save and load what was fitted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy.linalg  # noqa: F401  (its BLAS must be loaded before it can be kept to one thread)

from vitnp import kernels, options
from vitnp.clustering.kmeans import Mapper
from vitnp.clustering.spectral import spectral_clusters
from vitnp.errors import ImageError, UsageError
from vitnp.features.entries import Entries
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import Extraction, extract_to_store
from vitnp.features.temporary import check_space, estimate_bytes, temporary_store
from vitnp.io import decode, headers
from vitnp.io.spool import MaskSpool
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.method.agreement import two_cluster_variant
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.collection import Collection
from vitnp.method.collection_level import (
    CATEGORY,
    DATASET,
    CollectionLevelConfig,
    FittedLevel,
    default_categories,
    fit_level,
)
from vitnp.method.defaults import default_vit
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.parameters import run_parameters
from vitnp.method.prototypes import fit_prototypes, label_map, split_by_class, split_pixels
from vitnp.method.regions import RegionRule, Regions, label_regions, region_patches
from vitnp.options import Settings
from vitnp.pipeline import ImageAnswer, ImagePipeline, image_memory_error, judge_image, segment_features
from vitnp.progress import Progress, silent
from vitnp.result import Segmentation
from vitnp.vit.model import ViT

# Neighbors of a CLS token in the graph whose clusters are categories or classes.
N_NEIGHBORS = 30

# Hard answers are kept in a byte, in units of which every mean over up to six numbers of clusters is a whole number.
HARD_UNITS = 240

Result = TypeVar("Result")


class Segmenter:
    """Three levels of agreement, and classes, for a collection of photographs.

    Parameters
    ----------
    vit : ViT, optional
        The built-in network by default. On a GPU (:meth:`vitnp.vit.model.ViT.to`) everything between pixels and masks
        is computed there.
    n_classes : int, optional
        Number of classes to find without labels, 1 to 65,535; none by default. Label files hold at most 255.
    n_categories : int, optional
        Number of categories of similar photographs; by default one per 20 photographs, 1 to 20.
    consistency : {"mean", "majority", "intersection"}
        How the levels agree, see :func:`vitnp.method.agreement.combine_levels`.
    regions : RegionRule or str
        What gets a class: the mask as a whole ("image"), its "components", or components that are "split" where they
        hold two classes.
    fit_patches : int or "all", optional
        Maximum number of patches that the data set level is fitted on; 60,000 by default.
    cache : path, optional
        Folder that keeps features for the next run; by default they are kept in a temporary folder.
    n_threads : int, optional
        Photographs in flight; all cores by default.
    batch : int, optional
        Photographs per forward pass, see :func:`vitnp.features.batching.through_network`.
    mapper : callable, optional
        Runs the passes of k-means, see :meth:`vitnp.clustering.kmeans.KMeans.fit` and :mod:`vitnp.distributed`.
    extractor : callable, optional
        Fills the feature store, as :func:`vitnp.features.stream.extract_to_store` does by default; see
        :mod:`vitnp.distributed`.
    progress : callable, optional
        ``progress(stage, total)`` is a context manager that gives a function to be called with the steps done.
    notice : callable, optional
        Gets one line for each damaged file in the cache; the log by default.
    image_level, dataset_level, category_level, cleaning
        Constants, see :mod:`vitnp.method`.
    **settings
        `short_side`, `facet`, `layer`, `stride`, `max_tokens`, `max_pixels`, `refine`, `seed` and `min_confidence`, as
        in :func:`vitnp.segment_image`.

    Notes
    -----
    The same photographs in the same order give the same answer, bit for bit, for any number of threads, with and
    without a cache. In another order the image level stays the same; the data set and its categories are clustered
    from other starts, as with another seed.

    Attributes
    ----------
    collection : Collection
        What was fitted.
    photographs : list
        The photographs, as they were given.
    failures : dict of int to ImageError
        Photographs that could not be read.
    masks, labels : sequence
        For each photograph (height, width) bool, and uint8 (uint16 above 255 classes) with 0 for background and classes
        from 1; None for a failure. Kept on disk, decoded on access.
    categories : (n,) int64
        Category of each photograph, -1 for a failure.
    confidences : (n,) float64
    fingerprints : list of str
        Fingerprint of each photograph's file, or of its pixels; None for a failure.
    regions : list of Regions
        With classes only, else None for each photograph.
    seconds : dict of str to float
        Time per stage.

    Examples
    --------
    >>> segmenter = Segmenter(n_classes=20).fit(["a.jpg", "b.jpg", "c.jpg"])        # doctest: +SKIP
    >>> segmenter.masks[0].shape                                                     # doctest: +SKIP
    (375, 500)
    >>> segmenter.save("holiday.safetensors")                                       # doctest: +SKIP
    >>> Segmenter.load("holiday.safetensors").predict("new.jpg").mask.mean()        # doctest: +SKIP
    0.27
    """

    def __init__(
        self,
        vit: ViT | None = None,
        n_classes: int | None = None,
        *,
        n_categories: int | None = None,
        consistency: str = "mean",
        regions: RegionRule | str = "image",
        fit_patches: int | str | None = None,
        cache: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        batch: int | None = None,
        mapper: Mapper | None = None,
        extractor: Callable[..., Extraction] = extract_to_store,
        progress: Progress = silent,
        notice: Callable[[str], None] | None = None,
        image_level: ImageLevelConfig = ImageLevelConfig(),
        dataset_level: CollectionLevelConfig = DATASET,
        category_level: CollectionLevelConfig = CATEGORY,
        cleaning: CleaningConfig = CleaningConfig(),
        **settings: Any,
    ) -> None:
        self.n_classes = options.check("n_classes", n_classes)
        self.n_categories = options.check("n_categories", n_categories)
        self.consistency = options.check("consistency", consistency)
        self.fit_patches = dataset_level.sample if options.check("fit_patches", fit_patches) is None else fit_patches
        self.rule = regions if isinstance(regions, RegionRule) else RegionRule(regions)
        self.vit = default_vit() if vit is None else vit
        self.settings = Settings(**settings)
        self.parameters = run_parameters(self.vit, self.settings)
        self.cache, self.n_threads, self.batch = cache, n_threads, batch
        self.mapper, self.extractor, self.progress, self.notice = mapper, extractor, progress, notice
        self.image_level, self.dataset_level, self.category_level = image_level, dataset_level, category_level
        if consistency != "mean":  # the literal reading of the paper: two clusters at each level
            self.image_level = two_cluster_variant(image_level)
            self.dataset_level = two_cluster_variant(dataset_level)
            self.category_level = two_cluster_variant(category_level)
        self.cleaning = cleaning
        self.collection: Collection | None = None

    # --- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self, photographs: Sequence[Any], *, observe: Callable[[int, Segmentation], None] = lambda index, result: None
    ) -> Segmenter:
        """Fit a collection to photographs, and segment them.

        Parameters
        ----------
        photographs : sequence of paths, PIL images or (height, width, 3) uint8 arrays
        observe : callable, optional
            ``observe(index, segmentation)`` is called once per photograph when its mask is known, from several threads;
            write files there.

        Returns
        -------
        Segmenter
            Itself.

        Raises
        ------
        UsageError
            If there are no photographs, or more classes than regions.
        ImageError
            If no photograph could be read: the reason for the first, while `failures` has them all.
        OutputError
            If the disk is full.
        """
        if isinstance(photographs, (str, os.PathLike, np.ndarray)) or hasattr(photographs, "getexif"):
            raise UsageError("fit takes a list of photographs, got a single one; put it into a list")
        self.photographs = list(photographs)
        if not self.photographs:
            raise UsageError("fit needs at least one photograph, got none")
        self.failures: dict[int, ImageError] = {}
        self.regions: list[Regions | None] = [None] * len(self.photographs)
        self._grids: dict[int, tuple[int, int]] = {}
        clock = Stopwatch()
        with blas.one_blas_thread(), self._extracted() as entries:
            self.fingerprints = list(entries.hashes)
            clock.lap("features")
            self._read = [index for index in range(len(self.photographs)) if index not in self.failures]
            if not self._read:
                raise self.failures[0]
            if self.rule.how == "image":  # at most one region each
                self._check_n_classes(len(self._read), len(self._read))
            self._fit_image_level(entries)
            clock.lap("image level")
            self._fit_categories(entries)
            clock.lap("categories")
            self._fit_levels(entries)
            clock.lap("levels")
            self._make_masks(entries, observe)
            clock.lap("masks")
            if self.n_classes is not None:
                self._fit_classes(entries)
                clock.lap("classes")
        self.seconds = clock.seconds
        return self

    def _fit_image_level(self, entries: Entries) -> None:
        """Answer the image level for every photograph; two bytes and one byte per patch are kept."""
        self._soft: dict[int, np.ndarray] = {}
        self._hard: dict[int, np.ndarray] = {}
        self.confidences = np.zeros(len(self.photographs))

        def work(index: int) -> tuple[np.ndarray, np.ndarray, float]:
            answer = judge_image(entries[index], self.vit.device, self.settings.seed, config=self.image_level)
            soft, hard = kernels.to_host(answer.soft), kernels.to_host(answer.hard)
            return soft.astype(np.float16), np.rint(hard * HARD_UNITS).astype(np.uint8), answer.confidence

        for index, (soft, hard, confidence) in zip(self._read, self._each(work, self._read, "image level")):
            self._soft[index], self._hard[index], self.confidences[index] = soft, hard, confidence

    def _fit_categories(self, entries: Entries) -> None:
        cls = np.stack([entries[index].cls for index in self._read])
        n_categories = self.n_categories or default_categories(len(self._read))
        labels = self._cluster_cls_tokens(cls, min(n_categories, len(cls)))
        self.categories = np.full(len(self.photographs), -1)
        self.categories[self._read] = labels
        self._centers = _unit_means(_unit(cls), labels)

    def _fit_levels(self, entries: Entries) -> None:
        seed = self.settings.seed
        sets = [(self._read, self.dataset_level, self.fit_patches, (seed, 1))]
        for category in range(len(self._centers)):
            members = [index for index in self._read if self.categories[index] == category]
            limit = "all" if self.fit_patches == "all" else self.category_level.sample
            sets.append((members, self.category_level, limit, (seed, 2, category)))

        def work(
            item: tuple[list[int], CollectionLevelConfig, int | str, tuple[int, ...]],
        ) -> FittedLevel:
            indices, config, limit, seed = item
            keys, hard = self._sample(entries, indices, limit, seed)
            return fit_level(
                keys, hard, seed, config, mapper=self.mapper, n_threads=self.n_threads, device=self.vit.device
            )

        # One after the other: each is parallel inside.
        dataset, *categories = self._watch(map(work, sets), len(sets), "levels")
        parameters = {
            **self.parameters,
            "consistency": self.consistency,
            "temperatures": {"dataset": dataset.temperature, "category": categories[0].temperature},
            "image_level": dataclasses.asdict(self.image_level),
            "cleaning": dataclasses.asdict(self.cleaning),
            "regions": dataclasses.asdict(self.rule),
            "fit_patches": self.fit_patches,
            "photographs": len(self._read),
        }
        self.collection = Collection(parameters, dataset, tuple(categories), self._centers)
        # Masks depend on the levels alone, not on the classes that are fitted after them.
        self._levels_digest = self.collection.digest

    def _sample(
        self, entries: Entries, indices: Sequence[int], limit: int | str, seed: tuple[int, ...]
    ) -> tuple[Any, np.ndarray]:
        """Draw at most `limit` patches of photographs: their keys, and the hard answers for them."""
        hard = [self._hard[index] for index in indices]
        if isinstance(limit, str):
            return entries.keys(indices), np.concatenate(hard) / np.float32(HARD_UNITS)
        keys, rows = entries.sample(indices, [len(part) for part in hard], limit, seed)
        return keys, np.concatenate([part[drawn] for part, drawn in zip(hard, rows)]) / np.float32(HARD_UNITS)

    def _make_masks(self, entries: Entries, observe: Callable[[int, Segmentation], None]) -> None:
        """Make the masks of all photographs, and the CLS tokens of their regions if there are classes to find."""
        self._masks = MaskSpool()
        self._cls: dict[int, np.ndarray] = {}
        self._scores: dict[int, np.ndarray] = {}

        def work(index: int) -> ImageError | None:
            clock = Stopwatch(self.vit.device)
            photograph, features = self.photographs[index], entries[index]
            try:
                with _large_photograph_lock(photograph), image_memory_error(self.vit.device):
                    _check_unchanged(photograph, features.photograph)
                    rgb = decode.read_image(photograph, max_pixels=self.settings.max_pixels)
                    clock.lap("decode")
                    soft = self._soft.pop(index).astype(np.float32)
                    hard = self._hard.pop(index) / np.float32(HARD_UNITS)
                    answer = ImageAnswer(
                        kernels.to_device(soft, self.vit.device),
                        kernels.to_device(hard, self.vit.device),
                        float(self.confidences[index]),
                    )
                    result = segment_features(
                        rgb, features, answer, self.result_parameters, clock, self.vit, self.collection,
                        int(self.categories[index]),
                    )  # fmt: skip
                    self._masks.put(index, result.mask)
                    if self.n_classes is not None:
                        self._describe_regions(index, features, result)
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
        patches = region_patches(label_regions(result.mask, self.rule), features.grid)
        cls = self.vit.region_cls(features.cls_state, features.last_key, features.value, patches)
        self._cls[index] = cls.astype(np.float16)
        mean = (patches @ result.score.ravel()) / np.maximum(patches.sum(axis=1), 1)
        self._scores[index] = (result.confidence * mean).astype(np.float32)

    def _fit_classes(self, entries: Entries) -> None:
        owners = [index for index in self._read if index not in self.failures]
        counts = [len(self._cls[index]) for index in owners]
        self._check_n_classes(sum(counts), len(owners))
        unit = _unit(np.concatenate([self._cls.pop(index) for index in owners]))
        labels = self._cluster_cls_tokens(unit, self.n_classes)
        prototypes = fit_prototypes(unit, labels, self.settings.seed)
        self.collection = dataclasses.replace(self.collection, prototypes=prototypes)
        means = _unit_means(unit, labels)
        starts = np.cumsum([0, *counts])
        spans = {index: slice(start, end) for index, start, end in zip(owners, starts, starts[1:])}

        def work(index: int) -> Regions:
            part, features = spans[index], entries[index]
            patches = region_patches(self._whole_regions(index), features.grid)
            typical = (unit[part] * means[labels[part]]).sum(axis=1)
            regions = Regions(labels[part], self._scores.pop(index), typical, patches.sum(axis=1))
            if self.rule.how != "split":
                return regions
            region_cls = functools.partial(self.vit.region_cls, features.cls_state, features.last_key, features.value)
            seed = (self.settings.seed, features.digest)
            return split_by_class(
                regions, patches, features.unit, features.grid, region_cls, prototypes, seed, self.rule
            )

        for index, regions in zip(owners, self._each(work, owners, "classes")):
            self.regions[index], self._grids[index] = regions, entries[index].grid

    def _check_n_classes(self, n_regions: int, n_photographs: int) -> None:
        if self.n_classes is not None and n_regions < self.n_classes:
            raise UsageError(
                f"n_classes must be at most the number of regions, {n_regions} in {n_photographs} photographs, "
                f"got {self.n_classes}; ask for fewer classes"
            )

    def _whole_regions(self, index: int) -> np.ndarray:
        mask = self._masks.get(index)
        with pool.large_image_lock(mask.size):
            return label_regions(mask, self.rule)

    def _cluster_cls_tokens(self, cls: np.ndarray, n_clusters: int) -> np.ndarray:
        """Cluster CLS tokens by the graph of their nearest neighbors."""
        # In a small collection thirty neighbors are nearly all tokens, and their graph would separate nothing.
        neighbors = min(N_NEIGHBORS, max(2, len(cls) // 5))
        return spectral_clusters(
            cls, n_clusters, neighbors=neighbors, seed=self.settings.seed, n_threads=self.n_threads
        )

    # --- what was found ----------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Sequence[np.ndarray | None]:
        """(height, width) bool for each photograph, None for a failure; decoded on access."""
        self._check_fitted()
        return _LazySequence(
            len(self.photographs), lambda index: None if index in self.failures else self._masks.get(index)
        )

    @property
    def labels(self) -> Sequence[np.ndarray | None]:
        """(height, width) uint8 (uint16 above 255 classes) for each photograph, None for a failure.

        0 is background, classes count from 1; without classes 1 is the foreground.
        """
        self._check_fitted()
        return _LazySequence(len(self.photographs), self._label_map)

    def _check_fitted(self) -> None:
        if not hasattr(self, "_masks"):
            raise UsageError("no photographs are fitted yet; call fit first (a loaded collection can predict)")

    def _label_map(self, index: int) -> np.ndarray | None:
        if index in self.failures:
            return None
        regions = self.regions[index]
        if regions is None:
            return self._masks.get(index).astype(np.uint8)
        return label_map(self.region_map(index), regions.classes)

    def region_map(self, index: int) -> np.ndarray:
        """Return (height, width) uint16: 0 on the background, then the regions of ``regions[index]`` from 1."""
        return split_pixels(self._whole_regions(index), self.regions[index], self._grids[index])

    def predict(self, photograph: Any) -> Segmentation:
        """Segment a photograph with what was fitted; with classes the result has labels.

        The category is the one with the nearest CLS center, the image level is the photograph's own, and regions join
        the class that most of the training regions like them belong to.

        Raises
        ------
        ImageError
            If the photograph cannot be read.
        UsageError
            Before :meth:`fit`.
        """
        if self.collection is None:
            raise UsageError("nothing is fitted yet; call fit first, or load a fitted collection")
        return ImagePipeline.create(self.vit, self.settings, self.collection)(photograph)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was fitted: a safetensors file of at most a few MB.

        Raises
        ------
        UsageError
            Before :meth:`fit`.
        OutputError
            If the file cannot be written.
        """
        if self.collection is None:
            raise UsageError("nothing is fitted yet; call fit first")
        self.collection.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], vit: ViT | None = None, **arguments: Any) -> Segmenter:
        """Return a Segmenter that can predict.

        Parameters
        ----------
        path : path
            What :meth:`save` wrote.
        vit : ViT, optional
            The network it was fitted with; the built-in one by default.
        **arguments
            Further arguments of the constructor; by default the settings of the features are the collection's own.

        Raises
        ------
        CheckpointError
            If the file cannot be read or is not a collection.
        UsageError
            If the network or the settings are not those it was fitted with.
        """
        collection = Collection.load(path)
        names = {"short_side": "size", **{name: name for name in ("facet", "layer", "stride", "max_tokens")}}
        names |= {name: name for name in ("refine", "seed")}
        own = {name: collection.parameters[stored] for name, stored in names.items()}
        segmenter = cls(vit, **{**own, **arguments})
        run_parameters(segmenter.vit, segmenter.settings, collection)  # checks that they fit
        segmenter.collection = collection
        return segmenter

    # --- the machinery -----------------------------------------------------------------------------------------------

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
            "cleaning": dataclasses.asdict(self.cleaning),
            "regions": dataclasses.asdict(self.rule),
        }

    @property
    def result_parameters(self) -> Mapping[str, object]:
        """What a photograph's mask depends on: the settings, and the whole collection."""
        return {**self.parameters, "levels": "all", "collection": self._levels_digest}

    def _each(self, work: Callable[[int], Result], indices: Sequence[int], stage: str) -> Iterator[Result]:
        """Yield results for photographs in their order, several in flight, with progress shown."""

        def limited(index: int) -> Result:
            with blas.one_blas_thread():
                return work(index)

        with contextlib.closing(pool.map_ordered(limited, indices, pool.resolve_n_threads(self.n_threads))) as results:
            yield from self._watch(results, len(indices), stage)

    def _watch(self, results: Iterable[Result], total: int, stage: str) -> Iterator[Result]:
        with self.progress(stage, total) as advance:
            for result in results:
                advance(1)
                yield result

    @contextlib.contextmanager
    def _extracted(self) -> Iterator[Entries]:
        """Give the features of the photographs, in a store that exists as long as it is needed."""
        spec = FeatureSpec.of(self.vit, **self.settings.of_features, regions=self.n_classes is not None)
        needed = estimate_bytes(self.photographs, self.vit, spec)
        with contextlib.ExitStack() as stack:
            if self.cache is None:
                store = stack.enter_context(temporary_store(spec, needed=needed, notice=self.notice))
            else:
                store = FeatureStore(self.cache, spec, notice=self.notice)
                check_space(self.cache, int(needed * (1 - len(store) / max(len(store), len(self.photographs)))))
            with self.progress("features", len(self.photographs)) as advance:
                extraction = self.extractor(
                    self.photographs,
                    self.vit,
                    store,
                    n_threads=self.n_threads,
                    max_pixels=self.settings.max_pixels,
                    progress=advance,
                    **({} if self.batch is None else {"batch": self.batch}),
                )
            self.failures.update(extraction.failures)
            yield Entries(store, extraction.hashes)


class _LazySequence(Sequence):
    """A sequence whose items are made on access."""

    def __init__(self, length: int, item: Callable[[int], Any]) -> None:
        self._length, self._item = length, item

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"the index must be from 0 to {self._length - 1}, got {index}")
        return self._item(index % self._length)


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

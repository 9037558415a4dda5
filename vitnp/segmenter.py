"""Segmenter: fit a collection of photographs, predict new ones, save and load what was learnt."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401  (its BLAS must be there before it can be kept to one thread)

from vitnp import kernels
from vitnp.clustering.kmeans import Mapper
from vitnp.clustering.spectral import spectral_clusters
from vitnp.errors import ImageError, UsageError
from vitnp.features.entries import Entries
from vitnp.features.record import FeatureRecord, unit_rows
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import Extraction, extract_to_store
from vitnp.features.temporary import check_space, estimate_bytes, temporary_store
from vitnp.io import decode
from vitnp.io.spool import MaskSpool
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas, pool
from vitnp.method import agreement, cleaning, collection_level
from vitnp.method import confidence as confidence_
from vitnp.method import image_level as image_level_
from vitnp.method.collection import Collection
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.prototypes import fit_prototypes, label_map, split_by_class, split_pixels
from vitnp.method.regions import RegionRule, Regions, label_regions, region_patches
from vitnp.pipeline import compose, default_vit, refused_beyond_memory, run_parameters, segment_image
from vitnp.progress import Progress, silent
from vitnp.result import Segmentation
from vitnp.vit.model import ViT

# Of a CLS token in the graph that parts categories and classes.
NEIGHBORS = 30

# Counts of hard answers are kept in a byte: every mean over up to six numbers of clusters is a whole number of these.
HARD_UNITS = 240


class Segmenter:
    """Three levels of agreement, and classes, for a collection of photographs.

    Parameters
    ----------
    vit : ViT, optional
        By default the built-in checkpoint. On a GPU (:meth:`vitnp.vit.model.ViT.to`) all between pixels and masks is computed there.
    n_classes : int, optional
        Unsupervised classes to find, 1 to 65,535; by default none. Files of labels hold 255 at most.
    categories : int, optional
        Categories of similar photographs; by default one for 20 photographs, 1 to 20.
    consistency : {"mean", "majority", "intersection"}
        How the levels agree, see :func:`vitnp.method.agreement.combine_levels`.
    regions : RegionRule or str
        What gets a class: the mask as a whole ("image"), its "components", or components that are "split" where they hold two classes.
    fit_patches : int or "all", optional
        Most patches that the data set's level is fitted on.
    cache : path, optional
        Folder that keeps features for the next run; by default they live in a temporary folder.
    n_threads : int, optional
        Photographs in flight.
    batch : int, optional
        Photographs in the network at the same time, see :func:`vitnp.features.stream.extract_to_store`.
    mapper : callable, optional
        Who does the passes of k-means, see :meth:`vitnp.clustering.kmeans.KMeans.fit` and :mod:`vitnp.distributed`.
    extractor : callable, optional
        Who fills the store, as :func:`vitnp.features.stream.extract_to_store` does by default; see :mod:`vitnp.distributed`.
    progress : callable, optional
        ``progress(stage, total)`` is a context manager that gives a function to be called with steps done.
    notice : callable, optional
        Is told, a line each, of damaged files in the cache. By default the log.
    image_level, dataset_level, category_level, cleaning_rule
        Constants, see :mod:`vitnp.method.image_level` and :mod:`vitnp.method.cleaning`.
    **options
        size, facet, layer, stride, max_tokens, max_pixels, refine, seed and min_confidence, as in :func:`vitnp.segment_image`.

    Notes
    -----
    The same photographs in the same order give the same answer, bit for bit, for any number of threads, with and without a
    cache. In another order the image level stays the same; the data set and its categories are clustered from other starts, as
    with another seed.

    Attributes
    ----------
    collection : Collection
        What was learnt.
    photographs : list
        What was fitted, as it was given.
    failures : dict of int to ImageError
        Photographs that could not be read.
    masks, labels : sequence
        For each photograph (height, width) bool, and uint8 (uint16 beyond 255 classes) with 0 for background and classes from 1;
        None where it failed.
        Kept on the disk, decoded when asked for.
    categories : (n,) int64
        Category of each photograph, -1 where it failed.
    confidences : (n,) float64
    fingerprints : list of str
        Of each photograph's file, or of its pixels; None where it failed.
    regions : list of Regions
        With classes only, else None for each photograph.
    seconds : dict of str to float
        By stage.

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
        categories: int | None = None,
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
        dataset_level: collection_level.CollectionLevelConfig = collection_level.DATASET,
        category_level: collection_level.CollectionLevelConfig = collection_level.CATEGORY,
        cleaning_rule: cleaning.CleaningConfig = cleaning.CleaningConfig(),
        **options: Any,
    ) -> None:
        if n_classes is not None and not 1 <= n_classes <= 65_535:
            raise UsageError(f"{n_classes} classes can't be; choose 1 to 65535")
        if categories is not None and categories < 1:
            raise UsageError(f"{categories} categories can't be; choose 1 or more")
        if consistency not in agreement.CONSISTENCY:
            raise UsageError(
                f"there is no consistency {consistency!r}; choose among {', '.join(agreement.CONSISTENCY)}"
            )
        if fit_patches is not None and fit_patches != "all" and not (isinstance(fit_patches, int) and fit_patches >= 1):
            raise UsageError(f"fitting on {fit_patches!r} patches can't be; choose a number from 1 on, or all")
        self.vit = default_vit() if vit is None else vit
        self.n_classes, self.n_categories, self.consistency = n_classes, categories, consistency
        self.rule = regions if isinstance(regions, RegionRule) else RegionRule(regions)
        self.fit_patches = dataset_level.sample if fit_patches is None else fit_patches
        self.cache, self.n_threads, self.batch = cache, n_threads, batch
        self.mapper, self.extractor, self.progress, self.notice = mapper, extractor, progress, notice
        soften = (lambda constants: constants) if consistency == "mean" else agreement.two_cluster_variant
        self.image_level, self.dataset_level, self.category_level = map(
            soften, (image_level, dataset_level, category_level)
        )
        self.cleaning_rule = cleaning_rule
        self.max_pixels = options.pop("max_pixels", decode.MAX_PIXELS)
        self.options = options
        self.parameters = run_parameters(self.vit, **options)
        self.seed = int(self.parameters["seed"])
        self.collection: Collection | None = None

    # --- fitting ---------------------------------------------------------------------------------------------------------

    def fit(
        self, photographs: Sequence[Any], *, observe: Callable[[int, Segmentation], None] = lambda index, result: None
    ) -> Segmenter:
        """Learn from photographs, and segment them.

        Parameters
        ----------
        photographs : sequence of paths, PIL images or (height, width, 3) uint8 arrays
        observe : callable, optional
            ``observe(index, segmentation)`` is called once a photograph when its mask is known, from several threads; whoever
            wants files writes them here.

        Returns
        -------
        Segmenter
            Itself.

        Raises
        ------
        UsageError
            When there is nothing to fit, or more classes than regions.
        ImageError
            When no photograph could be read: the reason for the first, while `failures` has them all.
        OutputError
            When the disk is full.
        """
        if isinstance(photographs, (str, os.PathLike, np.ndarray)) or hasattr(photographs, "getexif"):
            raise UsageError("fit takes a list of photographs; put a single one into a list")
        self.photographs = list(photographs)
        if not self.photographs:
            raise UsageError("there are no photographs to fit; name at least one")
        self.failures: dict[int, ImageError] = {}
        self.regions: list[Regions | None] = [None] * len(self.photographs)
        self._grids: dict[int, tuple[int, int]] = {}
        clock = Stopwatch()
        with contextlib.ExitStack() as stack:
            stack.enter_context(blas.one_blas_thread())
            entries = stack.enter_context(self._entries())
            self.fingerprints = entries.hashes
            clock.lap("features")
            self._read = [index for index in range(len(self.photographs)) if index not in self.failures]
            if not self._read:
                raise self.failures[0]
            if self.rule.how == "image":  # at most one region each
                self._refuse_too_many_classes(len(self._read), len(self._read))
            self._fit_image_level(entries)
            clock.lap("image level")
            self._fit_categories(entries)
            clock.lap("categories")
            self._fit_levels(entries)
            clock.lap("levels")
            self._segment(entries, observe)
            clock.lap("masks")
            if self.n_classes is not None:
                self._fit_classes(entries)
                clock.lap("classes")
        self.seconds = clock.seconds
        return self

    def _fit_image_level(self, entries: Entries) -> None:
        """Soft and hard answers and the confidence of every photograph; two and one bytes a patch."""
        self._soft: dict[int, np.ndarray] = {}
        self._hard: dict[int, np.ndarray] = {}
        self.confidences = np.zeros(len(self.photographs))

        def work(index: int) -> tuple[np.ndarray, np.ndarray, float]:
            entry = entries[index]
            keys = self._unit(entry)
            seed = (self.seed, entry.digest)
            soft, hard = image_level_.image_level(keys, entry.attention, entry.grid, seed, self.image_level)
            confidence, soft, hard = confidence_.confidence(soft, keys), kernels.to_host(soft), kernels.to_host(hard)
            return soft.astype(np.float16), np.rint(hard * HARD_UNITS).astype(np.uint8), confidence

        for index, (soft, hard, confidence) in zip(self._read, self._each(work, self._read, "image level")):
            self._soft[index], self._hard[index], self.confidences[index] = soft, hard, confidence

    def _fit_categories(self, entries: Entries) -> None:
        cls = np.stack([entries[index].cls for index in self._read])
        wanted = self.n_categories or collection_level.default_categories(len(self._read))
        labels = self._alike(cls, min(wanted, len(cls)))
        self.categories = np.full(len(self.photographs), -1)
        self.categories[self._read] = labels
        self._centers = _means(_unit(cls), labels)

    def _fit_levels(self, entries: Entries) -> None:
        members = [[i for i in self._read if self.categories[i] == category] for category in range(len(self._centers))]
        sets = [(self._read, self.dataset_level, self.fit_patches, (self.seed, 1))]
        for category, indices in enumerate(members):
            limit = "all" if self.fit_patches == "all" else self.category_level.sample
            sets.append((indices, self.category_level, limit, (self.seed, 2, category)))

        def work(item) -> collection_level.FittedLevel:
            indices, constants, limit, seed = item
            keys, hard = self._sample(entries, indices, limit, seed)
            return collection_level.fit_level(
                keys, hard, seed, constants, mapper=self.mapper, n_threads=self.n_threads, device=self.vit.device
            )

        # One after the other: each is parallel inside.
        dataset, *categories = self._watched(map(work, sets), len(sets), "levels")
        parameters = {
            **self.parameters,
            "consistency": self.consistency,
            "temperatures": {"dataset": dataset.temperature, "category": categories[0].temperature},
            "image_level": dataclasses.asdict(self.image_level),
            "cleaning": dataclasses.asdict(self.cleaning_rule),
            "regions": dataclasses.asdict(self.rule),
            "fit_patches": self.fit_patches,
            "photographs": len(self._read),
        }
        self.collection = Collection(parameters, dataset, tuple(categories), self._centers)
        self._digest = self.collection.digest

    def _sample(
        self, entries: Entries, indices: Sequence[int], limit: int | str, seed: tuple[int, ...]
    ) -> tuple[Any, np.ndarray]:
        """Keys of at most `limit` patches of the photographs, drawn without replacement, and the hard answers for them."""
        hard = [self._hard[index] for index in indices]
        counts = np.array([len(part) for part in hard])
        total = int(counts.sum())
        if limit == "all":
            return entries.keys(indices), np.concatenate(hard) / np.float32(HARD_UNITS)
        rng = np.random.default_rng((*seed, 0))
        drawn = np.arange(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
        ends = np.cumsum(counts)
        cuts = np.searchsorted(drawn, ends)
        rows = [part - (end - count) for part, end, count in zip(np.split(drawn, cuts[:-1]), ends, counts)]
        keys = np.concatenate([entries[index].keys[part] for index, part in zip(indices, rows) if len(part)])
        return keys, np.concatenate([part[chosen] for part, chosen in zip(hard, rows)]) / np.float32(HARD_UNITS)

    def _segment(self, entries: Entries, observe: Callable[[int, Segmentation], None]) -> None:
        """Masks of all photographs, and CLS tokens of their regions where classes are wanted."""
        self._masks = MaskSpool()
        self._cls: dict[int, np.ndarray] = {}
        self._scores: dict[int, np.ndarray] = {}

        def work(index: int) -> ImageError | None:
            clock = Stopwatch(self.vit.device)
            photograph, entry = self.photographs[index], entries[index]
            try:
                with _room(photograph), refused_beyond_memory(self.vit.device):
                    _refuse_changed(photograph, entry.photograph)
                    rgb = decode.read_image(photograph, max_pixels=self.max_pixels)
                    clock.lap("decode")
                    category = int(self.categories[index])
                    own = self._soft.pop(index).astype(np.float32), self._hard.pop(index) / np.float32(HARD_UNITS)
                    own = tuple(kernels.to_device(part, self.vit.device) for part in own)
                    levels = self.collection.levels(self._unit(entry), own, category)
                    score = agreement.combine_levels(levels, self.consistency)
                    score = cleaning.clean(score.reshape(entry.grid), self.cleaning_rule)
                    clock.lap("cluster")
                    result = compose(
                        rgb,
                        entry,
                        score,
                        float(self.confidences[index]),
                        self.result_parameters,
                        entry.photograph,
                        clock,
                        category,
                        levels,
                    )
                    self._masks.put(index, result.mask)
                    if self.n_classes is not None:
                        self._describe_regions(index, entry, result)
                    observe(index, result)
            except ImageError as error:  # it was there for the features, and is gone or changed now
                return error
            return None

        for index, error in zip(self._read, self._each(work, self._read, "masks")):
            if error is not None:
                self.failures[index], self.categories[index] = error, -1
                self.fingerprints[index], self.confidences[index] = None, 0.0
        if len(self.failures) == len(self.photographs):
            raise self.failures[self._read[0]]

    def _describe_regions(self, index: int, entry: FeatureRecord, result: Segmentation) -> None:
        patches = region_patches(label_regions(result.mask, self.rule), entry.grid)
        self._cls[index] = self.vit.region_cls(entry.cls_state, entry.last_key, entry.value, patches).astype(np.float16)
        mean = (patches @ result.score.ravel()) / np.maximum(patches.sum(axis=1), 1)
        self._scores[index] = (result.confidence * mean).astype(np.float32)

    def _fit_classes(self, entries: Entries) -> None:
        owners = [index for index in self._read if index not in self.failures]
        counts = [len(self._cls[index]) for index in owners]
        self._refuse_too_many_classes(sum(counts), len(owners))
        unit = _unit(np.concatenate([self._cls.pop(index) for index in owners]))
        labels = self._alike(unit, self.n_classes)
        prototypes = fit_prototypes(unit, labels, self.seed)
        self.collection = dataclasses.replace(self.collection, prototypes=prototypes)
        means = _means(unit, labels)
        starts = np.cumsum([0, *counts])
        spans = {index: slice(start, end) for index, start, end in zip(owners, starts, starts[1:])}

        def work(index: int) -> Regions:
            part, entry = spans[index], entries[index]
            patches = region_patches(self._whole_regions(index), entry.grid)
            typical = (unit[part] * means[labels[part]]).sum(axis=1)
            found = Regions(labels[part], self._scores.pop(index), typical, patches.sum(axis=1))
            if self.rule.how != "split":
                return found
            region_cls = functools.partial(self.vit.region_cls, entry.cls_state, entry.last_key, entry.value)
            seed = (self.seed, entry.digest)
            return split_by_class(found, patches, entry.unit, entry.grid, region_cls, prototypes, seed, self.rule)

        for index, found in zip(owners, self._each(work, owners, "classes")):
            self.regions[index], self._grids[index] = found, entries[index].grid

    def _refuse_too_many_classes(self, regions: int, photographs: int) -> None:
        if self.n_classes is not None and regions < self.n_classes:
            raise UsageError(
                f"{self.n_classes} classes can't be made of {regions} regions in {photographs} photographs; ask for fewer classes"
            )

    def _whole_regions(self, index: int) -> np.ndarray:
        mask = self._masks.get(index)
        with pool.large_image_lock(mask.size):
            return label_regions(mask, self.rule)

    def _alike(self, cls: np.ndarray, groups: int) -> np.ndarray:
        """Groups of CLS tokens, by the graph of their nearest neighbors."""
        # In a small collection thirty neighbors are everybody, and a graph that joins everybody tells nothing apart.
        neighbors = min(NEIGHBORS, max(2, len(cls) // 5))
        return spectral_clusters(cls, groups, neighbors=neighbors, seed=self.seed, n_threads=self.n_threads)

    # --- what was found --------------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Sequence[np.ndarray | None]:
        """(height, width) bool for each photograph, None where it failed; decoded when asked for."""
        self._refuse_unfitted()
        return _Lazy(len(self.photographs), lambda index: None if index in self.failures else self._masks.get(index))

    @property
    def labels(self) -> Sequence[np.ndarray | None]:
        """(height, width) uint8 (uint16 above 255 classes) for each photograph, None where it failed: 0 for background, classes
        from 1; without classes 1 is the foreground.
        """
        self._refuse_unfitted()
        return _Lazy(len(self.photographs), self._labels)

    def _refuse_unfitted(self) -> None:
        if not hasattr(self, "_masks"):
            raise UsageError("no photographs are fitted yet; call fit first (a loaded collection can predict)")

    def _labels(self, index: int) -> np.ndarray | None:
        if index in self.failures:
            return None
        if self.regions[index] is None:
            return self._masks.get(index).astype(np.uint8)
        return label_map(self.region_map(index), self.regions[index].classes)

    def region_map(self, index: int) -> np.ndarray:
        """(height, width) uint16: 0 on the background, then the regions of ``regions[index]`` from 1 on."""
        return split_pixels(self._whole_regions(index), self.regions[index], self._grids[index])

    def predict(self, photograph: Any) -> Segmentation:
        """Segment a photograph with what was learnt; with classes the result has labels.

        The category is the one with the nearest CLS center, the image level is the photograph's own, and regions join the class
        that most of the training regions like them belong to.

        Raises
        ------
        ImageError
            When it can't be read.
        UsageError
            Before :meth:`fit`.
        """
        if self.collection is None:
            raise UsageError("nothing is fitted yet; call fit first, or load a fitted collection")
        return segment_image(
            photograph, self.vit, **self.options, max_pixels=self.max_pixels, collection=self.collection
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt, a safetensors file of at most a few MB.

        Raises
        ------
        UsageError
            Before :meth:`fit`.
        OutputError
            When it can't be written.
        """
        if self.collection is None:
            raise UsageError("nothing is fitted yet; call fit first")
        self.collection.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], vit: ViT | None = None, **options: Any) -> Segmenter:
        """A Segmenter that can predict.

        Parameters
        ----------
        path : path
            What :meth:`save` wrote.
        vit : ViT, optional
            The network it was fitted with; by default the built-in checkpoint.
        **options
            Of the constructor; size, facet, layer and stride are the collection's own unless they are given.

        Raises
        ------
        CheckpointError
            When the file can't be read or is no collection.
        UsageError
            When the network or the options aren't the ones it was fitted with.
        """
        collection = Collection.load(path)
        own = {
            name: collection.parameters[name]
            for name in ("size", "facet", "layer", "stride", "max_tokens", "refine", "seed")
        }
        made = cls(vit, **{**own, **options})
        run_parameters(made.vit, **made.options, collection=collection)  # refuses what doesn't fit
        made.collection = collection
        return made

    def _unit(self, entry: FeatureRecord) -> np.ndarray:
        """A photograph's keys with rows of unit length, on the network's device."""
        return unit_rows(kernels.to_device(entry.keys, self.vit.device))

    # --- the machinery ---------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Mapping[str, object]:
        """Everything that the answer depends on beside the photographs; known before they are fitted."""
        return {
            **self.parameters,
            "max_pixels": self.max_pixels,
            "classes": self.n_classes,
            "categories": self.n_categories,
            "consistency": self.consistency,
            "fit_patches": self.fit_patches,
            "image_level": dataclasses.asdict(self.image_level),
            "dataset_level": dataclasses.asdict(self.dataset_level),
            "category_level": dataclasses.asdict(self.category_level),
            "cleaning": dataclasses.asdict(self.cleaning_rule),
            "regions": dataclasses.asdict(self.rule),
        }

    @property
    def result_parameters(self) -> Mapping[str, object]:
        """What a photograph's mask depends on: the options, and the whole collection."""
        return {**self.parameters, "levels": "all", "collection": self._digest}

    def _each(self, work: Callable[[int], Any], indices: Sequence[int], stage: str) -> Iterator[Any]:
        """Results for photographs in their order, several in flight, with progress shown."""
        count = pool.resolve_n_threads(self.n_threads)

        def limited(index: int) -> Any:
            with blas.one_blas_thread():
                return work(index)

        results = pool.map_ordered(limited, indices, count)
        with contextlib.closing(results):
            yield from self._watched(results, len(indices), stage)

    def _watched(self, results: Iterable[Any], total: int, stage: str) -> Iterator[Any]:
        with self.progress(stage, total) as advance:
            for result in results:
                advance(1)
                yield result

    @contextlib.contextmanager
    def _entries(self) -> Iterator[Entries]:
        """Features of the photographs, in a store that lasts as long as it's needed."""
        known = ("size", "facet", "layer", "stride", "max_tokens")
        options = {name: self.options[name] for name in known if name in self.options}
        identity = FeatureSpec.of(self.vit, **options, regions=self.n_classes is not None)
        needed = estimate_bytes(self.photographs, self.vit, identity)
        with contextlib.ExitStack() as stack:
            if self.cache is None:
                store = stack.enter_context(temporary_store(identity, needed=needed, notice=self.notice))
            else:
                store = FeatureStore(self.cache, identity, notice=self.notice)
                check_space(self.cache, int(needed * (1 - len(store) / max(len(store), len(self.photographs)))))
            batch = {} if self.batch is None else {"batch": self.batch}
            with self.progress("features", len(self.photographs)) as advance:
                extraction = self.extractor(
                    self.photographs,
                    self.vit,
                    store,
                    threads=self.n_threads,
                    max_pixels=self.max_pixels,
                    progress=advance,
                    **batch,
                )
            self.failures.update(extraction.failures)
            yield Entries(store, extraction.hashes)


class _Lazy(Sequence):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, length: int, item: Callable[[int], Any]) -> None:
        self._length, self._item = length, item

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"there are {self._length} photographs, and no number {index}")
        return self._item(index % self._length)


def _refuse_changed(photograph: Any, fingerprint: str) -> None:
    """A file must be the one that the features are of, or they would be laid over another picture."""
    if isinstance(photograph, (str, os.PathLike)) and decode.file_hash(photograph) != fingerprint:
        raise ImageError(f"{photograph}: it was changed while it was worked on; run again")


def _room(photograph: Any) -> contextlib.AbstractContextManager:
    """Large photographs go one at a time."""
    if isinstance(photograph, (str, os.PathLike)):
        return pool.large_image_lock(decode.pixels_of(photograph))
    return contextlib.nullcontext()


def _unit(x: np.ndarray) -> np.ndarray:
    return kernels.for_device().normalize_rows(np.asarray(x, np.float32))


def _means(unit: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unit mean of each label's rows, (labels, D)."""
    return _unit(np.stack([unit[labels == label].mean(axis=0) for label in range(labels.max() + 1)]))

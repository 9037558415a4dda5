"""Segmenter: fit a collection of photographs, segment new ones, save and load what was fitted."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitnp import options
from vitnp.clustering.estimator import not_fitted
from vitnp.clustering.kmeans import Mapper
from vitnp.errors import ImageError, UsageError
from vitnp.features.stream import Extraction, extract_to_store
from vitnp.fit import Fit, FitPlan
from vitnp.io.inputs import as_photograph, as_photographs
from vitnp.method import texture
from vitnp.method.agreement import two_cluster_variant
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.collection import Collection
from vitnp.method.collection_level import CATEGORY, DATASET, CollectionLevelConfig
from vitnp.method.defaults import resolve_vit
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.parameters import run_parameters
from vitnp.method.readout import ReadoutConfig
from vitnp.method.regions import RegionRule, Regions
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline
from vitnp.progress import Progress, silent
from vitnp.result import Segmentation
from vitnp.vit.model import ViT

_IMAGE_LEVEL = ImageLevelConfig()
_READOUT = ReadoutConfig()
_CLEANING = CleaningConfig()


class Segmenter:
    """Three levels of agreement, and classes, for a collection of photographs.

    Parameters
    ----------
    vit : ViT, name or path, optional
        A network, or what :func:`vitnp.load_vit` takes; the built-in network by default. On a GPU
        (:meth:`vitnp.vit.model.ViT.to`) everything between pixels and masks is computed there.
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
    image_level, dataset_level, category_level, readout, cleaning
        Constants, see :mod:`vitnp.method`. Without a `readout`, None, the collection has three levels.
    levels : Collection, optional
        Take its levels instead of fitting new ones, so that only classes are fitted to the photographs.
    **settings
        `short_side`, `facet`, `layer`, `stride`, `max_tokens`, `max_pixels`, `refine`, `seed`, `min_confidence`,
        `alpha` and `domain`, as in :func:`vitnp.segment_image`.

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
        vit: ViT | str | os.PathLike[str] | None = None,
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
        image_level: ImageLevelConfig = _IMAGE_LEVEL,
        dataset_level: CollectionLevelConfig = DATASET,
        category_level: CollectionLevelConfig = CATEGORY,
        readout: ReadoutConfig | None = _READOUT,
        cleaning: CleaningConfig = _CLEANING,
        levels: Collection | None = None,
        **settings: Any,
    ) -> None:
        own = {name: value for name, value in locals().items() if name not in ("self", "settings")}
        self._arguments = {**own, **settings}
        fit_patches = options.check("fit_patches", fit_patches)
        n_classes, n_categories = options.check("n_classes", n_classes), options.check("n_categories", n_categories)
        for name, value, kind in (
            ("image_level", image_level, ImageLevelConfig),
            ("dataset_level", dataset_level, CollectionLevelConfig),
            ("category_level", category_level, CollectionLevelConfig),
            ("cleaning", cleaning, CleaningConfig),
        ):
            if not isinstance(value, kind):
                raise UsageError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        rule = regions if isinstance(regions, RegionRule) else RegionRule(regions)
        self.settings = Settings(**settings)
        is_photo = self.settings.domain == "photo"
        # The literal reading of the paper has two clusters at each level, and three levels that vote; domains other
        # than that of photographs have two clusters as well. Neither has a readout.
        two_clusters = options.check("consistency", consistency) != "mean" or not is_photo
        if not is_photo and cleaning is _CLEANING:
            cleaning = texture.CLEANING
        self.vit = resolve_vit(vit)
        self.parameters = run_parameters(self.vit, self.settings)
        if levels is not None:
            run_parameters(self.vit, self.settings, levels)  # checks that they fit
        self.plan = FitPlan(
            vit=self.vit,
            settings=self.settings,
            parameters=self.parameters,
            n_classes=n_classes,
            n_categories=n_categories,
            consistency=consistency,
            rule=rule,
            fit_patches=dataset_level.sample if fit_patches is None else fit_patches,
            image_level=_image_level_of(levels, image_level, two_clusters=two_clusters),
            dataset_level=two_cluster_variant(dataset_level) if two_clusters else dataset_level,
            category_level=two_cluster_variant(category_level) if two_clusters else category_level,
            readout=None if two_clusters else readout,
            cleaning=cleaning if levels is None else levels.cleaning,
            levels=levels,
            cache=None if cache is None else _folder(cache),
            n_threads=options.check("n_threads", n_threads),
            batch=options.check("batch", batch),
            mapper=mapper,
            extractor=extractor,
            progress=progress,
            notice=notice,
        )
        self.cache, self.n_threads, self.progress = self.plan.cache, n_threads, progress
        self.collection: Collection | None = None
        self._last_fit: Fit | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor by name, as scikit-learn's ``clone`` asks for them."""
        return dict(self._arguments)

    def set_params(self, **params: Any) -> Segmenter:
        """Change arguments of the constructor and return this object; what was fitted is forgotten.

        Raises
        ------
        UsageError
            If a name or a value is not allowed.
        """
        known = {*self._arguments, *(field.name for field in dataclasses.fields(Settings))}
        for name in params:
            if name not in known:
                raise UsageError(f"a parameter must be one of {', '.join(sorted(known))}, got {name!r}")
        self.__init__(**{**self._arguments, **params})  # type: ignore[misc]  # the one way to check them all
        return self

    def fit(
        self,
        photographs: Any,
        y: object = None,
        *,
        observe: Callable[[int, Segmentation], None] = lambda index, result: None,
    ) -> Segmenter:
        """Fit a collection to photographs, and segment them.

        Parameters
        ----------
        photographs : folder, array (N, height, width, 3) uint8, or iterable of photographs
            Photographs are paths, file objects, bytes, PIL images, arrays, or rows of a data set, see
            :func:`vitnp.io.inputs.as_photographs`.
        y : ignored
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
        photographs = as_photographs(photographs)
        if not photographs:
            raise UsageError("fit needs at least one photograph, got none")
        fit = self._last_fit = Fit(self.plan, photographs)
        fit.run(observe)
        self.collection = fit.collection
        return self

    # --- what was found ----------------------------------------------------------------------------------------------

    @property
    def _fit(self) -> Fit:
        if self._last_fit is None:
            raise not_fitted(self)
        return self._last_fit

    @property
    def n_classes(self) -> int | None:
        """Number of classes to find."""
        return self.plan.n_classes

    @property
    def photographs(self) -> list[Any]:
        """The photographs, as they were given."""
        return self._fit.photographs

    @property
    def failures(self) -> dict[int, ImageError]:
        """Photographs that could not be read, by position."""
        return self._fit.failures

    @property
    def categories(self) -> np.ndarray:
        """(n,) int64: category of each photograph, -1 for a failure."""
        return self._fit.categories

    @property
    def confidences(self) -> np.ndarray:
        """(n,) float64: confidence of each photograph, 0 for a failure."""
        return self._fit.confidences

    @property
    def fingerprints(self) -> list[str | None]:
        """Fingerprint of each photograph's file, or of its pixels; None for a failure."""
        return self._fit.fingerprints

    @property
    def regions(self) -> list[Regions | None]:
        """Regions and their classes; None for each photograph without classes."""
        return self._fit.regions

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time per stage."""
        return self._fit.seconds

    @property
    def masks(self) -> Sequence[np.ndarray | None]:
        """(height, width) bool for each photograph, None for a failure; decoded on access."""
        return _LazySequence(len(self._fit.photographs), self._fit.mask)

    @property
    def labels(self) -> Sequence[np.ndarray | None]:
        """(height, width) uint8 (uint16 above 255 classes) for each photograph, None for a failure.

        0 is background, classes count from 1; without classes 1 is the foreground.
        """
        return _LazySequence(len(self._fit.photographs), self._fit.label_map)

    def region_map(self, index: int) -> np.ndarray:
        """Return (height, width) uint16: 0 on the background, then the regions of ``regions[index]`` from 1.

        Raises
        ------
        UsageError
            If the photograph has no regions: without classes, or after a failure.
        """
        return self._fit.region_map(index)

    @property
    def fit_parameters(self) -> Mapping[str, object]:
        """Everything that the answer depends on besides the photographs; known before they are fitted."""
        return self.plan.fit_parameters

    @property
    def result_parameters(self) -> Mapping[str, object]:
        """What a photograph's mask depends on: the settings, and the whole collection."""
        return self._fit.result_parameters

    # --- new photographs ---------------------------------------------------------------------------------------------

    def predict(self, photograph: Any) -> Segmentation:
        """Segment a photograph with what was fitted; with classes the result has labels.

        The category is the one with the nearest CLS center, the image level is the photograph's own, and regions join
        the class whose mean CLS token is nearest.

        Raises
        ------
        ImageError
            If the photograph cannot be read.
        UsageError
            Before :meth:`fit`.
        """
        if self.collection is None:
            raise not_fitted(self)
        return ImagePipeline.create(self.vit, self.settings, self.collection)(as_photograph(photograph))

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
            raise not_fitted(self)
        self.collection.save(path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], vit: ViT | str | os.PathLike[str] | None = None, **arguments: Any
    ) -> Segmenter:
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
        own["alpha"] = collection.parameters.get("alpha", "background")  # files of earlier versions don't have it
        own["domain"] = collection.parameters.get("domain", "photo")
        segmenter = cls(vit, **{**own, **arguments})
        run_parameters(segmenter.vit, segmenter.settings, collection)  # checks that they fit
        segmenter.collection = collection
        return segmenter


def _image_level_of(levels: Collection | None, config: ImageLevelConfig, *, two_clusters: bool) -> ImageLevelConfig:
    """Return the constants of the image level: those of given levels, or those asked for."""
    if levels is not None:
        return levels.image_level
    return two_cluster_variant(config) if two_clusters else config


def _folder(cache: object) -> Path:
    """Return the folder of the cache.

    Raises
    ------
    UsageError
        If it is no path.
    """
    if not isinstance(cache, (str, os.PathLike)):
        raise UsageError(f"cache must be the path of a folder, got {type(cache).__name__}")
    return Path(cache)


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

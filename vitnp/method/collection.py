"""A fitted collection: the result of fitting many photographs, in a few MB, to be applied to new ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.cached import cached_property
from vitnp.checkpoints.safetensors_io import read_safetensors, write_safetensors
from vitnp.errors import CheckpointError, UsageError
from vitnp.features.record import FeatureRecord
from vitnp.io.stamp import canonical_json
from vitnp.kernels.threads import blas
from vitnp.method import collection_file
from vitnp.method.agreement import ANY_PHOTOGRAPHS, combine_levels, level_weights
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.collection_level import FittedLevel
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.instances import Instances
from vitnp.method.lines import LineRule
from vitnp.method.prototypes import Prototypes, label_map, split_by_class, split_pixels
from vitnp.method.readout import Readout
from vitnp.method.regions import RegionRule, Regions, label_regions, region_patches
from vitnp.options import CONSISTENCIES
from vitnp.vit.model import ViT

FORMAT = "vitnp collection 1"

# Parameters that must be equal for features to be comparable, under their names in files.
COMPARABLE = ("sha256", "facet", "layer", "stride", "size", "pos_embed", "mean", "std", "heads")

# Largest ratio of two short sides at which keys are still alike: centroids of 320 pixels serve at 448, and the other
# way round.
NEAR_SIZES = 1.5

# Further parameters that every file has.
_REQUIRED = ("consistency", "max_tokens", "refine", "seed")

# Words for parameters in messages, where they differ from the names in files.
_IN_WORDS = {
    "sha256": "checkpoint",
    "pos_embed": "position convention",
    "mean": "normalization",
    "std": "normalization",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """The fitted state of :class:`vitnp.segmenter.Segmenter`.

    Attributes
    ----------
    parameters : mapping
        How the features were made and the levels fitted: :data:`COMPARABLE` and the constants of the method.
    dataset : FittedLevel
        Data set level.
    categories : tuple of FittedLevel
        Category levels, C in all.
    centers : (C, D) float32
        Mean CLS token of each category, normalized to unit length.
    prototypes : Prototypes, optional
        Means of the classes, if there are any.
    readout : Readout, optional
        Readout level; files of earlier versions have none, and votes of the paper's three levels do without.
    lines : LineRule, optional
        Sign and thresholds of lines, in the domain "lines".

    Examples
    --------
    >>> collection = Collection.load("birds.safetensors")              # doctest: +SKIP
    >>> vitnp.segment_image("crow.jpg", collection=collection).mask    # doctest: +SKIP
    """

    parameters: Mapping[str, Any]
    dataset: FittedLevel
    categories: tuple[FittedLevel, ...]
    centers: np.ndarray
    prototypes: Prototypes | None = None
    readout: Readout | None = None
    lines: LineRule | None = None

    def category_of(self, cls: np.ndarray) -> int:
        """Return the category whose center is nearest to the CLS token (D,) of a photograph."""
        with blas.one_blas_thread():
            row = np.asarray(kernels.to_host(cls), np.float32)[None]
            return int(kernels.for_array(row).kmeans_assign(row, self.centers)[0][0])

    def levels(
        self, keys: np.ndarray, image_level: tuple[np.ndarray, np.ndarray], category: int
    ) -> tuple[np.ndarray, ...]:
        """Return the answers of the levels for the patches of one photograph.

        Parameters
        ----------
        keys : (N, D) float
            Keys normalized to unit length.
        image_level : ((N,) float32, (N,) float32)
            Soft and hard answer of :func:`vitnp.method.image_level.image_level`.
        category : int
            Category of the photograph.

        Returns
        -------
        image, dataset, category[, readout] : (N,) float32
            Soft answers if levels are combined by their mean, else hard ones; see :meth:`combine`.
        """
        soft, hard = image_level
        with blas.one_blas_thread():
            if self.consistency != "mean":
                return hard, self.dataset.hard_foreground(keys), self.categories[category].hard_foreground(keys)
            levels = soft, self.dataset.soft_foreground(keys), self.categories[category].soft_foreground(keys)
            return levels if self.readout is None else (*levels, self.readout.soft_foreground(keys))

    def combine(self, levels: Sequence[np.ndarray]) -> np.ndarray:
        """Combine the answers of :meth:`levels` into one score (N,) float32 per patch, on their device.

        See :func:`vitnp.method.agreement.combine_levels`. The weights of four levels are stored with the readout; files
        without them, as that of the built-in collection, are for photographs of any kind.
        """
        four = (self.parameters.get("readout") or {}).get("weights", ANY_PHOTOGRAPHS)
        return combine_levels(levels, self.consistency, level_weights(levels, four))

    @property
    def consistency(self) -> str:
        """How levels are combined, see :func:`vitnp.method.agreement.combine_levels`."""
        return str(self.parameters["consistency"])

    @property
    def image_level(self) -> ImageLevelConfig:
        """Constants of the image level that the other levels were fitted with."""
        stored = dict(self.parameters["image_level"])
        return ImageLevelConfig(**{**stored, "clusters": tuple(stored["clusters"])})

    @property
    def cleaning(self) -> CleaningConfig:
        """Constants of the cleaning step."""
        return CleaningConfig(**self.parameters["cleaning"])

    @property
    def rule(self) -> RegionRule:
        """Rule that divides masks into regions."""
        return RegionRule(**self.parameters["regions"])

    def labels(
        self, vit: ViT, features: FeatureRecord, mask: np.ndarray, instances: Instances | None = None
    ) -> np.ndarray:
        """Return the classes of the pixels of a photograph, by the nearest class means.

        Parameters
        ----------
        vit : ViT
        features : FeatureRecord
            Features of the photograph, with the arrays that regions need.
        mask : (height, width) bool
        instances : Instances, optional
            The objects of the mask, which get a class each; by default the regions that the collection's rule makes.

        Returns
        -------
        (height, width) uint8, or uint16 if there are more than 255 classes
            0 on the background, classes from 1.

        Raises
        ------
        UsageError
            If the collection has no classes, or the features lack these arrays.
        """
        return label_map(*self._regions(vit, features, mask, instances))

    def class_evidence(
        self, vit: ViT, features: FeatureRecord, mask: np.ndarray, instances: Instances | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the regions of a photograph, and what speaks for each class; arguments and errors as for `labels`.

        Returns
        -------
        regions : (height, width) uint16
            0 on the background, regions from 1 to G.
        patches : (G, N) bool
            Patches of each region.
        evidence : (G, K) float64
            See :meth:`vitnp.method.prototypes.Prototypes.evidence`.
        """
        regions, _ = self._regions(vit, features, mask, instances)
        patches = region_patches(regions, features.grid)
        assert self.prototypes is not None  # else _regions has raised
        return regions, patches, self.prototypes.evidence(_region_cls(vit, features)(patches))

    def _regions(
        self, vit: ViT, features: FeatureRecord, mask: np.ndarray, instances: Instances | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the regions of a mask, and the class of each."""
        if self.prototypes is None:
            raise UsageError("the collection has no classes; fit it with n_classes")
        regions = label_regions(mask, self.rule) if instances is None else instances.labels.astype(np.uint16)
        patches = region_patches(regions, features.grid)
        region_cls = _region_cls(vit, features)
        classes, certainty = self.prototypes.classify(region_cls(patches))
        if self.rule.how == "split":
            seed = (int(self.parameters["seed"]), features.digest)
            whole = Regions(classes, certainty, certainty, patches.sum(axis=1))
            unit = kernels.to_host(features.unit)
            split = split_by_class(whole, patches, unit, features.grid, region_cls, self.prototypes, seed, self.rule)
            regions, classes = split_pixels(regions, split, features.grid), split.classes
        return regions, classes

    @cached_property
    def digest(self) -> str:
        """Fingerprint of everything that answers depend on: 32 hexadecimal digits."""
        digest = hashlib.blake2b(canonical_json(self.parameters).encode(), digest_size=16)
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def mismatch(self, parameters: Mapping[str, Any]) -> str | None:
        """Return why features made with these parameters do not fit the collection: half a sentence, or None.

        Short sides may differ by a factor of up to :data:`NEAR_SIZES`.
        """
        # Files name the domain unless it is photographs, and the grid of the position embeddings if it isn't square.
        for name in ("domain", *COMPARABLE, "grid"):
            default = "photo" if name == "domain" else None
            ours, theirs = (
                json.loads(canonical_json(each.get(name, default))) for each in (self.parameters, parameters)
            )
            if ours == theirs:
                continue
            if name == "size" and max(ours, theirs) <= NEAR_SIZES * min(ours, theirs):
                continue
            if name == "sha256":
                ours, theirs = (str(each.get("model") or each["sha256"])[:64] for each in (self.parameters, parameters))
                if ours == theirs:
                    return f"it was fitted with another file of the checkpoint {ours}, such as an earlier revision"
            return f"it was fitted with the {_IN_WORDS.get(name, name)} {ours}, not {theirs}"
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file of a few MB at most, in full or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        metadata = {"format": FORMAT, "parameters": canonical_json(self.parameters), "digest": self.digest}
        write_safetensors(path, self._arrays(), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Collection:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If there is no such file, it is no collection, or it is damaged.
        """
        arrays, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is no fitted collection; make one with --save-collection, or check the file name"
            )
        try:
            collection = cls._from_file(arrays, metadata)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError, UsageError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); fit the collection again") from None
        return collection

    @classmethod
    def _from_file(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Collection:
        parameters = json.loads(metadata["parameters"])
        for name in (*COMPARABLE, *_REQUIRED):
            if name not in parameters:
                raise KeyError(name)
        if parameters["consistency"] not in CONSISTENCIES:
            raise ValueError(f"unknown consistency {parameters['consistency']!r}"[:80])
        collection = cls(parameters, *collection_file.from_arrays(arrays, parameters["temperatures"]))
        collection.image_level, collection.cleaning, collection.rule  # noqa: B018  (raise if the constants do not fit)
        if parameters.get("domain") == "lines" and collection.lines is None:
            raise KeyError("lines")
        if collection.digest != metadata["digest"]:
            raise ValueError("its checksum differs")
        return collection

    def _arrays(self) -> dict[str, np.ndarray]:
        return collection_file.to_arrays(
            self.dataset, self.categories, self.centers, self.prototypes, self.readout, self.lines
        )


def _region_cls(vit: ViT, features: FeatureRecord) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from the regions (G, N) bool of a photograph to their CLS tokens (G, D)."""
    return functools.partial(
        vit.region_cls, features.cls_state, features.last_key, features.value, size=features.pixels
    )

"""A fitted collection: what many photographs have taught, small enough to carry to new ones.

Centroids and foreground shares of the data set and of each category, the categories' CLS centroids, and, where classes were found,
prototypes of these; with the parameters that a new photograph's features must share.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from vitnp import kernels
from vitnp.errors import CheckpointError, UsageError
from vitnp.features.record import FeatureRecord
from vitnp.io.stamp import canonical_json
from vitnp.kernels.threads import blas
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.collection_level import FittedLevel
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.prototypes import Prototypes, label_map, split_by_class, split_pixels
from vitnp.method.regions import RegionRule, Regions, label_regions, region_patches
from vitnp.options import CONSISTENCIES
from vitnp.vit.model import ViT

FORMAT = "vitnp collection 1"

# What must be the same for features to be comparable, and how it's called on the command line.
COMPARABLE = ("sha256", "facet", "layer", "stride", "size", "pos_embed", "mean", "std", "heads")


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """The fitted state of :class:`vitnp.segmenter.Segmenter`.

    Attributes
    ----------
    parameters : mapping
        How the features were made and the levels fitted: see :data:`COMPARABLE`, and the constants.
    dataset : FittedLevel
    categories : tuple of FittedLevel
        One for each category, C in all.
    centers : (C, D) float32
        Unit mean CLS token of each category.
    prototypes : Prototypes, optional
        Where classes were found.
    """

    parameters: Mapping[str, object]
    dataset: FittedLevel
    categories: tuple[FittedLevel, ...]
    centers: np.ndarray
    prototypes: Prototypes | None = None

    def category_of(self, cls: np.ndarray) -> int:
        """The category whose center is nearest to a photograph's CLS token (D,)."""
        with blas.one_blas_thread():
            own = np.asarray(kernels.to_host(cls), np.float32)[None]
            return int(kernels.for_array(own).kmeans_assign(own, self.centers)[0][0])

    def levels(
        self, keys: np.ndarray, image_level: tuple[np.ndarray, np.ndarray], category: int
    ) -> tuple[np.ndarray, ...]:
        """What image, data set and category each say of one photograph's patches; for :func:`vitnp.method.agreement.combine_levels`.

        Parameters
        ----------
        keys : (N, D) float
            Unit rows.
        image_level : ((N,) float, (N,) float)
            Soft and hard answer of :func:`vitnp.method.image_level.image_level`.
        category : int

        Returns
        -------
        tuple of (N,) float32
            Soft answers where the levels agree by their mean, else hard ones.
        """
        soft, hard = image_level
        with blas.one_blas_thread():
            if self.consistency == "mean":
                return soft, self.dataset.soft_foreground(keys), self.categories[category].soft_foreground(keys)
            return hard, self.dataset.hard_foreground(keys), self.categories[category].hard_foreground(keys)

    @property
    def consistency(self) -> str:
        """How the levels agree, see :func:`vitnp.method.agreement.combine_levels`."""
        return str(self.parameters["consistency"])

    @property
    def image_level(self) -> ImageLevelConfig:
        """Constants of the image level that the others were fitted with."""
        stored = dict(self.parameters["image_level"])
        return ImageLevelConfig(**{**stored, "clusters": tuple(stored["clusters"])})

    @property
    def cleaning(self) -> CleaningConfig:
        """Constants of the cleaning step."""
        return CleaningConfig(**self.parameters["cleaning"])

    @property
    def rule(self) -> RegionRule:
        """How masks are parted into regions."""
        return RegionRule(**self.parameters["regions"])

    def labels(self, vit: ViT, features: FeatureRecord, mask: np.ndarray) -> np.ndarray:
        """Classes of a photograph's pixels, by the votes of the training regions.

        Parameters
        ----------
        vit : ViT
        features : FeatureRecord
            With what regions need.
        mask : (height, width) bool

        Returns
        -------
        (height, width) uint8
            0 for background, classes from 1.
        """
        if self.prototypes is None:
            raise UsageError("the collection has no classes; fit it with n_classes")
        regions = label_regions(mask, self.rule)
        patches = region_patches(regions, features.grid)
        region_cls = functools.partial(vit.region_cls, features.cls_state, features.last_key, features.value)
        classes, certainty = self.prototypes.vote(region_cls(patches))
        if self.rule.how == "split":
            seed = (int(self.parameters["seed"]), features.digest)
            found = Regions(classes, certainty, certainty, patches.sum(axis=1))
            unit = kernels.to_host(features.unit)
            found = split_by_class(found, patches, unit, features.grid, region_cls, self.prototypes, seed, self.rule)
            regions, classes = split_pixels(regions, found, features.grid), found.classes
        return label_map(regions, classes)

    @functools.cached_property
    def digest(self) -> str:
        """Fingerprint of everything that answers depend on: 32 hexadecimal digits."""
        digest = hashlib.blake2b(canonical_json(self.parameters).encode(), digest_size=16)
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def mismatch(self, parameters: Mapping[str, object]) -> str | None:
        """Why features made with these parameters can't be used with this collection: half a sentence, or None."""
        for name in COMPARABLE:
            ours, theirs = (
                json.loads(canonical_json(self.parameters[name])),
                json.loads(canonical_json(parameters[name])),
            )
            if ours != theirs:
                called = {
                    "sha256": "checkpoint",
                    "pos_embed": "position convention",
                    "mean": "normalization",
                    "std": "normalization",
                }
                if name == "sha256":
                    ours, theirs = (str(p.get("model") or p["sha256"])[:64] for p in (self.parameters, parameters))
                    if ours == theirs:
                        theirs = "another file of that name"
                return f"it was fitted with the {called.get(name, name)} {ours}, not {theirs}"
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file of at most a few MB, whole or not at all.

        Raises
        ------
        OutputError
            When it can't be written.
        """
        from vitnp.checkpoints.safetensors_io import write_safetensors

        metadata = {"format": FORMAT, "parameters": canonical_json(self.parameters), "digest": self.digest}
        write_safetensors(path, self._arrays(), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Collection:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            When there is no such file, or it is no collection.
        """
        from vitnp.checkpoints.safetensors_io import read_safetensors

        arrays, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no fitted collection; make one with --fit-to, or check the name")
        try:
            parameters = json.loads(metadata["parameters"])
            temperatures = parameters["temperatures"]
            levels = [_level(arrays, "dataset", temperatures["dataset"])]
            centers = np.array(arrays["centres"], np.float32)
            levels += [_level(arrays, f"category.{index}", temperatures["category"]) for index in range(len(centers))]
            for level in levels:
                if not level.centroids or any(
                    c.shape != (len(s), centers.shape[1]) for c, s in zip(level.centroids, level.shares)
                ):
                    raise ValueError("shapes that don't fit together")
            prototypes = None
            if "prototypes.cls" in arrays:
                prototypes = Prototypes(
                    np.array(arrays["prototypes.cls"]), np.array(arrays["prototypes.classes"], np.int64)
                )
                known = prototypes.classes
                if (
                    prototypes.cls.shape != (len(known), centers.shape[1])
                    or not len(known)
                    or known.min() < 0
                    or known.max() >= 65_535
                ):
                    raise ValueError("prototypes that don't fit")
            missing = [
                name for name in (*COMPARABLE, "consistency", "max_tokens", "refine", "seed") if name not in parameters
            ]
            if missing:
                raise KeyError(missing[0])
            if parameters["consistency"] not in CONSISTENCIES:
                raise ValueError(f"unknown consistency {parameters['consistency']!r}"[:80])
            collection = cls(parameters, levels[0], tuple(levels[1:]), centers, prototypes)
            collection.image_level, collection.cleaning, collection.rule  # noqa: B018  (reading them checks them)
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError("values that are not finite")
            if collection.digest != metadata["digest"]:
                raise ValueError("its checksum differs")
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError, UsageError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); fit the collection again") from None
        return collection

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"centres": self.centers}
        for name, level in [
            ("dataset", self.dataset),
            *((f"category.{i}", level) for i, level in enumerate(self.categories)),
        ]:
            for index, (centroids, shares) in enumerate(zip(level.centroids, level.shares)):
                arrays[f"{name}.{index}.centroids"], arrays[f"{name}.{index}.shares"] = centroids, shares
        if self.prototypes is not None:
            arrays["prototypes.cls"], arrays["prototypes.classes"] = self.prototypes.cls, self.prototypes.classes
        return arrays


def _level(arrays: Mapping[str, np.ndarray], name: str, temperature: float) -> FittedLevel:
    indices = range(sum(key.startswith(f"{name}.") and key.endswith(".shares") for key in arrays))
    centroids: Sequence[np.ndarray] = [np.array(arrays[f"{name}.{index}.centroids"], np.float32) for index in indices]
    shares = [np.array(arrays[f"{name}.{index}.shares"], np.float32) for index in indices]
    return FittedLevel(tuple(centroids), tuple(shares), float(temperature))

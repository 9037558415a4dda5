"""What stored features depend on besides the photograph: stores with equal specs hold equal numbers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitnp import options
from vitnp.errors import UsageError
from vitnp.io import preprocess
from vitnp.io.stamp import parameters_hash
from vitnp.vit.model import ViT

# Raised whenever the same spec would no longer give the same bytes.
STORE_VERSION = 1

# Names in stores whose fields are called otherwise here; stores keep the names they were written with.
_STORED_NAMES = {"short_side": "size", "numerics": "arithmetic"}


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of a photograph depend on; make one with :meth:`of`.

    Attributes
    ----------
    sha256 : str
        Checksum of the checkpoint; of the weights themselves if there is no file.
    facet : str
    layer : int
        Block read, counted from 0.
    stride, short_side : int
        Pixels between patches; short side of the network's input in pixels.
    precision : {"float16", "float32"}
        Type in which the rows of patches are stored.
    numerics : str
        See :attr:`vitnp.vit.model.ViT.numerics`.
    pos_embed : str
    mean, std : (float, float, float)
    heads : int
    eps : float
    max_tokens : int
    regions : bool
        Whether the features include what :meth:`vitnp.vit.model.ViT.region_cls` needs.
    version : int
        Version of the store.
    """

    sha256: str
    facet: str
    layer: int
    stride: int
    short_side: int
    precision: str
    numerics: str
    pos_embed: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    heads: int
    eps: float
    max_tokens: int
    regions: bool
    version: int = STORE_VERSION

    @classmethod
    def of(
        cls,
        vit: ViT,
        *,
        short_side: int | None = None,
        facet: str = "key",
        layer: int = -1,
        stride: int | None = None,
        max_tokens: int = options.MAX_TOKENS,
        precision: str = "float16",
        regions: bool = True,
    ) -> FeatureSpec:
        """Return the spec of a network's features.

        Parameters
        ----------
        vit : ViT
        short_side, facet, layer, stride, max_tokens
            As for :func:`vitnp.features.extract.extract`.
        precision : {"float16", "float32"}
        regions : bool
            Whether to include what the CLS tokens of regions are made from: up to three times as much data.

        Raises
        ------
        UsageError
            If the network does not have the layer or the stride, or a value is not allowed.
        """
        if precision not in options.FEATURE_DTYPES:
            allowed = options.enumerate_words(options.FEATURE_DTYPES)
            raise UsageError(f"precision must be one of {allowed}, got {precision!r}")
        config = vit.config
        return cls(
            sha256=vit.sha256 or _hash_weights(vit),
            facet=options.check("facet", facet),
            layer=config.resolve_layer(layer),
            stride=config.resolve_stride(stride),
            short_side=preprocess.short_side_of(options.check("short_side", short_side), config.patch),
            precision=precision,
            numerics=vit.numerics,
            pos_embed=config.pos_embed,
            mean=tuple(config.mean),
            std=tuple(config.std),
            heads=config.heads,
            eps=config.eps,
            max_tokens=options.check("max_tokens", max_tokens),
            regions=regions,
        )

    def keys_are_last(self, vit: ViT) -> bool:
        """Tell whether the facet is the key of the last block, which regions need."""
        return self.facet == "key" and self.layer == vit.config.depth - 1

    def as_stored(self) -> dict[str, Any]:
        """Return the fields under the names that stores use."""
        return {_STORED_NAMES.get(name, name): value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any]) -> FeatureSpec:
        """Return the spec that :meth:`as_stored` gave, read from JSON.

        Raises
        ------
        TypeError, AttributeError
            If these are not the fields of a spec.
        """
        names = {stored: name for name, stored in _STORED_NAMES.items()}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return cls(**{names.get(name, name): value for name, value in values.items()})

    @property
    def name(self) -> str:
        """Fingerprint, 32 hexadecimal digits: the name of the store's folder."""
        return parameters_hash(self.as_stored())


def _hash_weights(vit: ViT) -> str:
    digest = hashlib.sha256()
    for name in sorted(vit.weights):
        weight = np.ascontiguousarray(vit.weights[name])
        digest.update(f"{name} {weight.shape} {weight.dtype.str}".encode())
        digest.update(weight)
    return digest.hexdigest()

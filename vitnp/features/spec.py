"""What stored features depend on beside the photograph: two stores with the same identity hold the same numbers."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from vitnp.errors import UsageError
from vitnp.features.extract import MAX_TOKENS
from vitnp.io import preprocess
from vitnp.io.stamp import parameters_hash
from vitnp.vit.model import ViT

# Raised whenever the same identity would no longer give the same bytes.
STORE_VERSION = 1

PRECISIONS = ("float16", "float32")


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of a photograph depend on, once and for all; make one with :meth:`of`.

    Attributes
    ----------
    sha256 : str
        Of the checkpoint; of the weights themselves where there is no file.
    facet : str
    layer : int
        Block read, counted from 0.
    stride, size : int
        Pixels between patches, and the short side in pixels.
    precision : {"float16", "float32"}
        Of what there is one row a patch of, as it's stored.
    arithmetic : str
        See :attr:`vitnp.vit.model.ViT.numerics`.
    pos_embed : str
    mean, std : (float, float, float)
    heads : int
    eps : float
    max_tokens : int
    regions : bool
        Whether there is what :meth:`vitnp.vit.model.ViT.region_cls` needs.
    version : int
        Of the store.
    """

    sha256: str
    facet: str
    layer: int
    stride: int
    size: int
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
        size: int | None = None,
        facet: str = "key",
        layer: int = -1,
        stride: int | None = None,
        max_tokens: int = MAX_TOKENS,
        precision: str = "float16",
        regions: bool = True,
    ) -> FeatureSpec:
        """The identity of a network's features.

        Parameters
        ----------
        vit : ViT
        size, facet, layer, stride, max_tokens
            As for :func:`vitnp.features.extract`.
        precision : {"float16", "float32"}
        regions : bool
            Whether to store what CLS tokens of regions are made from: up to three times as much.

        Raises
        ------
        UsageError
            For an option that the network doesn't have.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"there is no precision {precision!r}; choose {' or '.join(PRECISIONS)}")
        config = vit.config
        # The network itself knows best what it has; a picture of one patch costs next to nothing.
        vit(np.zeros((1, 3, config.patch, config.patch), np.float32), (facet,), layer=layer, stride=stride)
        return cls(
            sha256=vit.sha256 or _hash_of(vit),
            facet=facet,
            layer=layer % config.depth,
            stride=config.patch if stride is None else stride,
            size=preprocess.short_side_of(size, config.patch),
            precision=precision,
            numerics=vit.numerics,
            pos_embed=config.pos_embed,
            mean=tuple(config.mean),
            std=tuple(config.std),
            heads=config.heads,
            eps=config.eps,
            max_tokens=max_tokens,
            regions=regions,
        )

    def keys_are_last(self, vit: ViT) -> bool:
        """Whether the facet is the very keys that regions need."""
        return self.facet == "key" and self.layer == vit.config.depth - 1

    @property
    def name(self) -> str:
        """Fingerprint, 32 hexadecimal digits: the name of the store's folder."""
        return parameters_hash(dataclasses.asdict(self))


def _hash_of(vit: ViT) -> str:
    digest = hashlib.sha256()
    for name in sorted(vit.weights):
        weight = np.ascontiguousarray(vit.weights[name])
        digest.update(f"{name} {weight.shape} {weight.dtype.str}".encode())
        digest.update(weight)
    return digest.hexdigest()

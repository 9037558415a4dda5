"""Specification of features: everything that they depend on besides the photograph."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitnp import options
from vitnp.checkpoints import registry
from vitnp.errors import UsageError
from vitnp.io import preprocess
from vitnp.io.stamp import parameters_hash
from vitnp.vit.model import ViT

# To be raised whenever the same spec no longer gives the same bytes.
STORE_VERSION = 2

# Names of fields in stores, where they differ; stores keep the names that they were written with.
_STORED_NAMES = {"short_side": "size", "numerics": "arithmetic"}


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of a photograph depend on; made by :meth:`of`.

    Features of equal specs are equal.

    Attributes
    ----------
    sha256 : str
        Checksum of the checkpoint, or of the weights themselves if there is no file.
    facet : {"key", "key_rotated", "query", "value", "token"}
        Feature that is stored as keys.
    layer : int
        Block that is read, from 0.
    stride, short_side : int
        Distance between patches, and short side of the network's input, in pixels.
    precision : {"float16", "float32"}
        Type of the stored rows of patches.
    numerics : str
        Device and precision of the network, see :attr:`vitnp.vit.model.ViT.numerics`.
    pos_embed, mean, std, heads, eps
        As in :class:`vitnp.vit.config.ViTConfig`.
    max_tokens : int
        Maximum number of patches; a larger grid is made coarser.
    regions : bool
        Whether the features include the arrays that :meth:`vitnp.vit.model.ViT.region_cls` needs.
    alpha : {"background", "ignore"}
        How transparent parts were decoded, see :func:`vitnp.io.decode.read_image`.
    version : int
        Version of the store.
    grid : (int, int), optional
        Grid of the position embeddings if it isn't square; not stored if it is.
    attention_heads : bool
        Whether the features include the attention of each head; not stored if not.
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
    alpha: str = "background"
    version: int = STORE_VERSION
    grid: tuple[int, int] | None = None
    attention_heads: bool = False

    @classmethod
    def of(
        cls,
        vit: ViT,
        *,
        short_side: int | None = None,
        facet: str = "key",
        layer: int | None = -1,
        stride: int | None = None,
        max_tokens: int = options.MAX_TOKENS,
        precision: str = "float16",
        regions: bool = True,
        alpha: str = "background",
        stored: bool = True,
        attention_heads: bool = False,
    ) -> FeatureSpec:
        """Return the spec of a network's features.

        Parameters
        ----------
        vit : ViT
        short_side, facet, layer, stride, max_tokens
            As for :func:`vitnp.features.extract.extract`.
        precision : {"float16", "float32"}
        regions : bool
            Whether to include the arrays from which CLS tokens of regions are computed: up to three times the data.
        alpha : {"background", "mask", "ignore"}
            As for :func:`vitnp.io.decode.read_image`; features of "mask" are those of "background".
        stored : bool
            Whether the features may be stored. If so, a network without a file is identified by a checksum of its
            weights, which takes a while for a large one.
        attention_heads : bool
            Whether to include the attention of each head: 4 bytes per patch and head.

        Returns
        -------
        FeatureSpec

        Raises
        ------
        UsageError
            If the network does not have the layer, the stride, the final norm or the facet, or a value is not allowed.
        """
        if precision not in options.FEATURE_DTYPES:
            allowed = options.enumerate_words(options.FEATURE_DTYPES)
            raise UsageError(f"precision must be one of {allowed}, got {precision!r}")
        vit.require_final_norm((facet, "cls") if stored else (facet,))
        config = vit.config
        config.require_rotary((facet,))
        return cls(
            sha256=vit.sha256 or (_hash_weights(vit) if stored else ""),
            facet=options.check("facet", facet),
            layer=config.resolve_layer(layer),
            stride=config.resolve_stride(stride),
            short_side=short_side_of(vit, options.check("short_side", short_side)),
            precision=precision,
            numerics=vit.numerics,
            pos_embed=config.pos_embed,
            mean=_three_floats(config.mean),
            std=_three_floats(config.std),
            heads=config.heads,
            eps=config.eps,
            max_tokens=options.check("max_tokens", max_tokens),
            regions=regions,
            alpha="ignore" if options.check("alpha", alpha) == "ignore" else "background",
            grid=config.oblong_grid,
            attention_heads=attention_heads,
        )

    def keys_are_last(self, vit: ViT) -> bool:
        """Return whether the facet is the key of the last block, which regions need."""
        return self.facet == "key" and self.layer == vit.config.depth - 1

    def as_stored(self) -> dict[str, Any]:
        """Return the fields under the names that stores use."""
        fields = dataclasses.asdict(self)
        if self.grid is None:
            del fields["grid"]
        if not self.attention_heads:
            del fields["attention_heads"]
        return {_STORED_NAMES.get(name, name): value for name, value in fields.items()}

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any]) -> FeatureSpec:
        """Return the spec with these fields, as :meth:`as_stored` gives them and JSON returns them.

        Raises
        ------
        TypeError, AttributeError
            If these are not the fields of a spec.
        """
        names = {stored: name for name, stored in _STORED_NAMES.items()}
        values: dict[str, Any] = {
            names.get(name, name): tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)

    @property
    def name(self) -> str:
        """Fingerprint of the spec, 32 hexadecimal digits: the folder name of a store."""
        return parameters_hash(self.as_stored())


def short_side_of(vit: ViT, short_side: int | None = None) -> int:
    """Return the short side in pixels at which photographs enter a network.

    Parameters
    ----------
    vit : ViT
    short_side : int, optional
        Requested short side; by default that of the checkpoint in the registry, else 320.

    Returns
    -------
    int
        A multiple of the patch size.
    """
    if short_side is None:
        short_side = registry.short_side(vit.sha256)
    return preprocess.short_side_of(short_side, vit.config.patch)


def _three_floats(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def _hash_weights(vit: ViT) -> str:
    digest = hashlib.sha256()
    for name in sorted(vit.weights):
        weight = np.ascontiguousarray(vit.weights[name])
        digest.update(f"{name} {weight.shape} {weight.dtype.str}".encode())
        digest.update(weight.data)
    return digest.hexdigest()

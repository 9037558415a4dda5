"""Architecture and preprocessing of a ViT."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable

from vitnp.errors import UsageError
from vitnp.options import FACETS


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Architecture and preprocessing of a ViT.

    Attributes
    ----------
    width : int
        Length of a token, D.
    depth : int
        Number of transformer blocks.
    heads : int
        Number of attention heads, H; a divisor of the width.
    patch : int
        Height and width of a patch in pixels, P.
    grid : (int, int)
        Rows and columns of the patch grid that the position embeddings were trained on. Rotary position embeddings fit
        any grid; for them it is that of the size of training, and nothing is computed from it.
    registers : int
        Number of register tokens, R.
    swiglu : bool
        Whether the MLP is a SwiGLU instead of two layers with GELU.
    layerscale : bool
        Whether each residual branch is multiplied by learned factors.
    eps : float
        Epsilon of every LayerNorm.
    pos_embed : {"offset", "exact", "antialias"}
        Interpolation of the position embeddings, see :mod:`vitnp.vit.pos_embed`. Not used with `rotary`.
    mean, std : (float, float, float)
        Mean and standard deviation that normalize RGB values in 0..1.
    rotary : bool
        Whether positions are encoded by rotating queries and keys of patches, as in DINOv3, see
        :mod:`vitnp.vit.rotary`, instead of by a table of position embeddings that is added to the patches.

    Examples
    --------
    >>> ViTConfig(width=384, depth=12, heads=6, patch=14, grid=(37, 37), registers=4).num_prefix_tokens
    5
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: tuple[int, int]
    registers: int = 0
    swiglu: bool = False
    layerscale: bool = False
    eps: float = 1e-6
    pos_embed: str = "offset"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    rotary: bool = False

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: CLS and the registers."""
        return 1 + self.registers

    @property
    def facets(self) -> tuple[str, ...]:
        """Names of the facets that the network has: only a network that rotates its keys has rotated ones."""
        return tuple(name for name in FACETS if self.rotary or name != "key_rotated")

    @property
    def oblong_grid(self) -> tuple[int, int] | None:
        """Grid of the position embeddings if it isn't square, else None.

        Position embeddings of one length may be read as several grids. Records of features name the one that was used
        only where it isn't the square one, so that those of square grids are the same as ever.
        """
        return None if self.grid[0] == self.grid[1] else self.grid

    def patch_grid(self, height: int, width: int, stride: int | None = None) -> tuple[int, int]:
        """Return the rows and columns of patches of an image of this size in pixels; by default patches don't overlap.

        Examples
        --------
        >>> ViTConfig(width=384, depth=12, heads=6, patch=8, grid=(28, 28)).patch_grid(320, 480, stride=4)
        (79, 119)
        """
        stride = stride or self.patch
        return (height - self.patch) // stride + 1, (width - self.patch) // stride + 1

    def resolve_layer(self, layer: int | None) -> int:
        """Return a block's index counted from 0; negative numbers count from the last block, None is the middle one.

        Raises
        ------
        UsageError
            If there is no such block.
        """
        if layer is None:
            return self.depth // 2
        if not isinstance(layer, numbers.Integral) or not -self.depth <= layer < self.depth:
            raise UsageError(
                f"layer must be between -{self.depth} and {self.depth - 1} for this network of {self.depth} blocks, "
                f"got {layer!r}"
            )
        return int(layer) % self.depth

    def resolve_stride(self, stride: int | None) -> int:
        """Return the pixels between patches; by default the patch size.

        Raises
        ------
        UsageError
            If the stride does not divide the patch size.
        """
        if stride is None:
            return self.patch
        if not isinstance(stride, numbers.Integral) or not 0 < stride <= self.patch or self.patch % stride:
            raise UsageError(f"stride must be a divisor of the patch size {self.patch}, got {stride!r}")
        return int(stride)

    def require_rotary(self, features: Iterable[str]) -> None:
        """Check that the network rotates its keys if features are taken after that.

        Raises
        ------
        UsageError
            If it has no rotary position embeddings.
        """
        if "key_rotated" in features and not self.rotary:
            raise UsageError(
                "'key_rotated' is the key after the rotation by its position, which this network lacks: use key, or "
                "a network with rotary position embeddings, such as DINOv3"
            )

"""A vision transformer on one page: images in, features of any block out.

Runs DINO (Caron et al. 2021, arXiv 2104.14294), DINOv2 with and without registers (Oquab et al. 2023, arXiv 2304.07193;
Darcet et al. 2023, arXiv 2309.16588) and any other ViT of the same shapes (Dosovitskiy et al. 2021, arXiv 2010.11929).

Letters: B images, N patches, R registers, T = 1 + R + N tokens in the order CLS, registers, patches; D width, H heads, P patch.
Weights are a plain mapping with the key names of DINO's own files.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Mapping

import numpy as np

from vitnp import kernels, threads
from vitnp.errors import UsageError
from vitnp.positions import resample_positions

FACETS = ("key", "query", "value", "token")
FEATURES = (*FACETS, "cls", "register", "attention", "cls_state")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """What the weights alone don't say, and what they do, at one glance.

    Parameters
    ----------
    width, depth, heads, patch : int
        D, number of blocks, H, P.
    grid : (int, int)
        Rows and columns of patches that the position embeddings were trained on.
    registers : int
        Register tokens, R.
    swiglu, layerscale : bool
        Whether the MLP is gated; whether residual branches are scaled.
    eps : float
        Of every LayerNorm.
    pos_embed : {"offset", "exact", "antialias"}
        How position embeddings are resampled, see :mod:`vitnp.positions`.
    mean, std : (float, float, float)
        Normalisation of RGB in 0..1 that the network was trained with.
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


class ViT:
    """A vision transformer: its configuration and its weights.

    Parameters
    ----------
    config : ViTConfig
    weights : mapping of str to float array
        Names as in DINO's files; linear weights are (outputs, inputs). float32 in use, float64 works.
    name, source, sha256 : str
        Where the weights came from, kept for the record.

    Examples
    --------
    >>> vit = vitnp.load_vit("auto")                                    # doctest: +SKIP
    >>> features = vit(images, want=("key", "cls"))                     # doctest: +SKIP
    >>> features["key"].shape                                           # doctest: +SKIP
    (1, 540, 192)
    """

    def __init__(
        self,
        config: ViTConfig,
        weights: Mapping[str, np.ndarray],
        *,
        name: str = "",
        source: str | None = None,
        sha256: str = "",
    ):
        self.config, self.weights = config, weights
        self.name, self.source, self.sha256 = name, source, sha256

    def __repr__(self) -> str:
        c = self.config
        return f"ViT({self.name or 'unnamed'}: depth {c.depth}, width {c.width}, heads {c.heads}, patch {c.patch})"

    def grid(self, height: int, width: int, stride: int | None = None) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels."""
        patch, stride = self.config.patch, stride or self.config.patch
        return (height - patch) // stride + 1, (width - patch) // stride + 1

    def __call__(
        self, images: np.ndarray, want: str | Iterable[str] = ("key",), *, layer: int = -1, stride: int | None = None
    ) -> dict[str, np.ndarray]:
        """Features of one block, and nothing that isn't asked for.

        Keys of a block need neither its attention nor its MLP; CLS needs one query row.

        Parameters
        ----------
        images : (B, 3, height, width) float
            Taken in the weights' type. Normalised with ``config.mean`` and ``config.std``; sides are multiples of the patch.
        want : str or iterable of str
            Among "key", "query", "value" and "token" (after the final norm), each (B, N, D) for the patches with heads
            side by side; "cls" (B, D) and "register" (B, R, D), after the final norm; "attention" (B, H, N), the CLS
            row of the attention to the patches (a softmax over all T tokens, so it sums to less than 1); "cls_state"
            (B, 4, D), CLS as it enters the block and its query, key and value, for :meth:`region_cls`.
        layer : int
            Block to read, from 0; negative numbers count from the last.
        stride : int, optional
            Pixels between patches, a divisor of the patch; smaller than the patch for overlapping patches. By default the patch.

        Returns
        -------
        dict of str to float array
            One entry for each name in `want`, of the weights' type.

        Raises
        ------
        UsageError
            For unknown features, a layer or stride out of range, or images of the wrong shape.
        """
        want = (want,) if isinstance(want, str) else tuple(want)
        layer, stride = self._checked(images, want, layer, stride)
        images = images.astype(self.weights["cls_token"].dtype, copy=False)
        with threads.one_blas_thread():
            x = embed(self.weights, self.config, images, stride)  # (B, T, D)
            for index in range(layer):
                x = block(self.weights, self.config, x, index)
            return read_block(self.weights, self.config, x, layer, want)

    def region_cls(self, state: np.ndarray, key: np.ndarray, value: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """CLS of parts of an image: the last block run for the CLS row alone, its attention restricted to CLS and a region's patches.

        As good as another pass over the cropped region, and hundreds of times cheaper. Registers, which speak of the whole
        image, are left out.

        Parameters
        ----------
        state : (4, D) float
            One image's "cls_state" of the last block.
        key, value : (N, D) float
            The same image's keys and values of the last block.
        regions : (G, N) bool
            The patches of each region; one without any gives CLS that attends to itself.

        Returns
        -------
        (G, D) float
            After the final norm.
        """
        c = self.config
        state, key, value = (np.asarray(part, self.weights["cls_token"].dtype) for part in (state, key, value))
        entering, query, own_key, own_value = (row[None, None] for row in state)  # (1, 1, D) each
        found = np.empty((len(regions), c.width), state.dtype)
        with threads.one_blas_thread():
            for index, region in enumerate(regions):
                keys = np.concatenate([own_key, key[None, region]], axis=1)  # (1, 1 + patches of the region, D)
                values = np.concatenate([own_value, value[None, region]], axis=1)
                out = _finish(self.weights, c, entering, query, keys, values, c.depth - 1)
                found[index] = _norm(self.weights, c, out, "norm")[0, 0]
        return found

    def _checked(self, images: np.ndarray, want: tuple[str, ...], layer: int, stride: int | None) -> tuple[int, int]:
        """Layer counted from 0 and stride in pixels, once everything is known to make sense."""
        c = self.config
        unknown = [name for name in want if name not in FEATURES]
        if unknown or not want:
            raise UsageError(f"unknown features {unknown}; choose among {', '.join(FEATURES)}")
        if not isinstance(layer, numbers.Integral) or not -c.depth <= layer < c.depth:
            raise UsageError(f"layer {layer} is out of range; this network has blocks 0 to {c.depth - 1} (or -{c.depth} to -1)")
        stride = c.patch if stride is None else stride
        if not isinstance(stride, numbers.Integral) or not 0 < stride <= c.patch or c.patch % stride:
            raise UsageError(f"stride {stride} doesn't fit; choose a divisor of the patch, {c.patch}")
        if not isinstance(images, np.ndarray):
            raise UsageError(f"images are a {type(images).__name__}; expected an array of the shape (B, 3, height, width)")
        if images.ndim != 4 or images.shape[1] != 3 or any(side % c.patch or not side for side in images.shape[2:]):
            raise UsageError(
                f"images have the shape {images.shape}; expected (B, 3, height, width) with sides that are multiples of {c.patch}"
            )
        return layer % c.depth, stride


def embed(weights: Mapping[str, np.ndarray], config: ViTConfig, images: np.ndarray, stride: int) -> np.ndarray:
    """Tokens (B, T, D) of images (B, 3, height, width): patches and CLS with their positions, registers without."""
    k = kernels.for_device()
    patches = k.patch_embedding(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride)
    batch, _, width = patches.shape
    rows, columns = ((side - config.patch) // stride + 1 for side in images.shape[2:])
    table = weights["pos_embed"][0]  # (1 + N0, D), or (N0, D) where CLS has no position
    first = table.shape[0] - config.grid[0] * config.grid[1]
    patches += resample_positions(table[first:].reshape(*config.grid, width), (rows, columns), config.pos_embed)
    leading = weights["cls_token"] + table[:first].sum(axis=0)  # (1, 1, D)
    if config.registers:
        leading = np.concatenate([leading, weights["register_tokens"]], axis=1)  # (1, 1 + R, D)
    return np.concatenate([np.broadcast_to(leading, (batch, *leading.shape[1:])), patches], axis=1)


def block(
    weights: Mapping[str, np.ndarray], config: ViTConfig, x: np.ndarray, index: int, rows: int | None = None
) -> np.ndarray:
    """One pre-norm transformer block on tokens (B, T, D); with `rows`, its output for the first so many tokens alone."""
    y = _norm(weights, config, x, f"blocks.{index}.norm1")
    query, key, value = (_project(weights, y[:, : rows if part == 0 else None], index, part) for part in range(3))
    return _finish(weights, config, x[:, :rows], query, key, value, index)


def read_block(
    weights: Mapping[str, np.ndarray], config: ViTConfig, x: np.ndarray, index: int, want: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The features `want` of block `index`, given the tokens (B, T, D) that enter it."""
    k = kernels.for_device()
    first = 1 + config.registers  # the first patch among the tokens
    # Rows of the block's output that somebody asks for: all of them, the leading ones, CLS, or none.
    rows = None if "token" in want else first if "register" in want else 1 if "cls" in want else 0
    by_cls = "attention" in want or "cls_state" in want
    queries = None if "query" in want or rows is None else max(rows, int(by_cls))
    y = _norm(weights, config, x, f"blocks.{index}.norm1")

    found: dict[str, np.ndarray] = {}
    query = _project(weights, y[:, :queries], index, 0) if queries != 0 else None  # (B, queries, D)
    key = _project(weights, y, index, 1) if "key" in want or by_cls or rows != 0 else None  # (B, T, D)
    value = _project(weights, y, index, 2) if "value" in want or "cls_state" in want or rows != 0 else None
    if "attention" in want:
        found["attention"] = k.attention_row(query[:, :1], key, config.heads)[:, :, first:]
    if "cls_state" in want:
        found["cls_state"] = np.stack([x[:, 0], query[:, 0], key[:, 0], value[:, 0]], axis=1)
    if rows != 0:
        out = _finish(weights, config, x[:, :rows], query[:, :rows], key, value, index)
        out = _norm(weights, config, out, "norm")
        found |= {"cls": out[:, 0], "register": out[:, 1:first], "token": out[:, first:]}
    found |= {name: facet[:, first:] for name, facet in zip(FACETS, (key, query, value)) if facet is not None}
    return {name: np.ascontiguousarray(found[name]) for name in want}


def _finish(
    weights: Mapping[str, np.ndarray], config: ViTConfig, x: np.ndarray,
    query: np.ndarray, key: np.ndarray, value: np.ndarray, index: int,
) -> np.ndarray:  # fmt: skip
    """What a block does after its projections: attention and MLP, each on a residual branch."""
    k = kernels.for_device()
    y = k.attention(query, key, value, config.heads)
    y = _linear(weights, y, f"blocks.{index}.attn.proj")
    x = x + _scaled(weights, config, y, f"blocks.{index}.ls1.gamma")
    y = _norm(weights, config, x, f"blocks.{index}.norm2")
    if config.swiglu:
        y = _linear(weights, k.swiglu(_linear(weights, y, f"blocks.{index}.mlp.w12")), f"blocks.{index}.mlp.w3")
    else:
        y = _linear(weights, k.gelu(_linear(weights, y, f"blocks.{index}.mlp.fc1")), f"blocks.{index}.mlp.fc2")
    return x + _scaled(weights, config, y, f"blocks.{index}.ls2.gamma")


def _project(weights: Mapping[str, np.ndarray], y: np.ndarray, index: int, part: int) -> np.ndarray:
    """Query (part 0), key (1) or value (2) of normed tokens (B, T, D): a third of the fused projection."""
    width = y.shape[-1]
    third = slice(part * width, (part + 1) * width)
    bias = weights.get(f"blocks.{index}.attn.qkv.bias")
    weight = weights[f"blocks.{index}.attn.qkv.weight"][third]
    return kernels.for_device().linear(y, weight, None if bias is None else bias[third])


def _linear(weights: Mapping[str, np.ndarray], y: np.ndarray, name: str) -> np.ndarray:
    return kernels.for_device().linear(y, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _norm(weights: Mapping[str, np.ndarray], config: ViTConfig, x: np.ndarray, name: str) -> np.ndarray:
    return kernels.for_device().layernorm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], config.eps)


def _scaled(weights: Mapping[str, np.ndarray], config: ViTConfig, y: np.ndarray, name: str) -> np.ndarray:
    """LayerScale (Touvron et al. 2021, arXiv 2103.17239), where the network has it."""
    return y * weights[name] if config.layerscale else y

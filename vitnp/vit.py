"""A vision transformer on one page: images in, features of any block out.

Runs DINO (Caron et al. 2021, arXiv 2104.14294), DINOv2 with and without registers (Oquab et al. 2023, arXiv 2304.07193;
Darcet et al. 2023, arXiv 2309.16588) and any other ViT of the same shapes (Dosovitskiy et al. 2021, arXiv 2010.11929).

Letters: B images, N patches, R registers, T = 1 + R + N tokens in the order CLS, registers, patches; D width, H heads, P patch;
b images and n rows of a block of tokens. Weights are a plain mapping with the key names of DINO's own files.

Tokens meet only in attention. So each thread takes its own blocks of rows through the whole network, and waits for the others
once a layer, until all keys and values are there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitnp import kernels, threads
from vitnp.errors import UsageError
from vitnp.mapped import forget_pages
from vitnp.positions import resample_positions

# Of all images together, from which on one set of keys and values does.
MANY_TOKENS = 2048

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
    precision : {"auto", "fp32", "tf32", "bf16", "fp16"}
        Of the operands of products, see :meth:`at`.
    device : {"auto", "cpu", "cuda"}
        Where it computes, see :meth:`on`.

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
        precision: str = "auto",
        device: str = "cpu",
    ):
        self.config, self.weights = config, weights
        self.name, self.source, self.sha256 = name, source, sha256
        self.device = kernels.choose_device(device)
        self.precision, self._wish = precision_for(precision, self.device), precision
        self._packed: Packed | None = None
        self._lock = threading.Lock()

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
            Of NumPy or CuPy.
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
            One entry for each name in `want`, of the weights' type, on the network's device.

        Raises
        ------
        UsageError
            For unknown features, a layer or stride out of range, or images of the wrong shape.
        """
        want = (want,) if isinstance(want, str) else tuple(want)
        layer, stride = self._checked(images, want, layer, stride)
        images = kernels.to_device(images, self.device).astype(self.dtype, copy=False)
        weights = self._ready()
        with weights.in_turn():
            forward = Pass(weights, self.config, images, stride, layer, want)
            threads.together(forward.run, most=forward.most)
            return forward.found()

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
            After the final norm; in the host's memory, wherever the network computes.
        """
        c, weights = self.config, self._ready()
        xp = weights.xp
        state, key, value = (xp.asarray(kernels.to_device(x, self.device), weights.dtype) for x in (state, key, value))
        entering, query, own_key, own_value = (row[None, None] for row in state)  # (1, 1, D) each
        found = xp.empty((len(regions), c.width), self.dtype)
        with weights.in_turn():
            for index, region in enumerate(regions):
                patches = xp.asarray(np.flatnonzero(region))
                keys = xp.concatenate([own_key, key[None, patches]], axis=1)  # (1, 1 + patches of the region, D)
                values = xp.concatenate([own_value, value[None, patches]], axis=1)
                gathered = weights.kernels.attention(query, keys, values, c.heads)
                out = finish(weights, c, entering, gathered, c.depth - 1)
                found[index] = norm(weights, c, out, "norm")[0, 0]
        return kernels.to_host(found)

    @property
    def dtype(self) -> np.dtype:
        """Of the weights, and so of everything computed; float32 on a GPU."""
        return np.dtype(np.float32) if self.device == "cuda" else self.weights["cls_token"].dtype

    @property
    def arithmetic(self) -> str:
        """What the last bits of its features depend on beside the weights: the precision, and "cuda" where that's the device.

        On one device the same photograph gives the same bits every time. Keys from a GPU are within 1e-5 of the CPU's in fp32, 2e-3
        in fp16, relative to the longest key.
        """
        return self.precision if self.device == "cpu" else f"{self.device} {self.precision}"

    def at(self, precision: str) -> ViT:
        """The same network with products in another precision.

        Parameters
        ----------
        precision : {"auto", "fp32", "tf32", "bf16", "fp16"}
            Of the operands of linear layers and attention; sums are float32 always. "auto" is fp32 on the CPU and fp16 on a GPU,
            where fp16 is that of all numbers between layers too.

        Raises
        ------
        UsageError
            For one that the device lacks; it names those that there are.
        """
        return self._but(precision=precision)

    def on(self, device: str) -> ViT:
        """The same network on another device, where it leaves what it computes.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}
            "auto" is "cuda" where that works, else "cpu".

        Raises
        ------
        DeviceError
            For "cuda" where it doesn't work: why, and what mends it.
        UsageError
            For a precision that was chosen and that the device lacks.
        """
        return self._but(device=device)

    def _but(self, **changed: str) -> ViT:
        same = {"name": self.name, "source": self.source, "sha256": self.sha256, "precision": self._wish, "device": self.device}
        return ViT(self.config, self.weights, **{**same, **changed})

    def _ready(self) -> Packed:
        """The weights as the kernels want them, made so at the first call."""
        with self._lock:
            if self._packed is None:
                self._packed = Packed(self.weights, self.precision, self.device)
            return self._packed

    def __getstate__(self) -> dict[str, object]:
        # Packed weights and locks stay behind: whoever gets the network packs for its own machine.
        return {name: value for name, value in self.__dict__.items() if name not in ("_packed", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _packed=None, _lock=threading.Lock())

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
        if not isinstance(images, np.ndarray) and kernels.device_of(images) == "cpu":
            raise UsageError(f"images are a {type(images).__name__}; expected an array of the shape (B, 3, height, width)")
        if images.ndim != 4 or images.shape[1] != 3 or any(side % c.patch or not side for side in images.shape[2:]):
            raise UsageError(
                f"images have the shape {images.shape}; expected (B, 3, height, width) with sides that are multiples of {c.patch}"
            )
        return layer % c.depth, stride


class Packed:
    """Weights as the kernels want them: matrices packed when they are first used, all else as it is.

    Attributes
    ----------
    kernels : module
        The operations.
    precision : str
        Of products' operands.
    device : {"cpu", "cuda"}
        Where they lie.
    xp : module
        NumPy's functions for arrays there.
    dtype : numpy.dtype
        Of what a layer takes and gives.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], precision: str, device: str = "cpu"):
        single = weights["cls_token"].dtype == np.float32
        self.kernels, self.precision = kernels.for_device("reference" if device == "cpu" and not single else device), precision
        self.device, self.xp = device, kernels.array_module(kernels.to_device(np.empty(0), device))
        on_gpu = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self.dtype = on_gpu if device == "cuda" else weights["cls_token"].dtype
        self._weights, self._packed, self._lock = weights, {}, threading.Lock()
        self.places: tuple[tuple[int, ...], tuple[np.ndarray, np.ndarray]] | None = None  # of the last grid, see places()

    def __getitem__(self, name: str) -> Any:
        """An entry by its name in the file; "NAME:query", ":key" and ":value" are thirds of the fused projection."""
        found = self._packed.get(name)
        return self._pack(name) if found is None else found

    def get(self, name: str) -> Any:
        """An entry, or None where the network has none of the name."""
        return self[name] if name.partition(":")[0] in self._weights else None

    def original(self, name: str) -> np.ndarray:
        """An entry as the file has it, in the host's memory."""
        return self._weights[name]

    def in_turn(self) -> contextlib.AbstractContextManager:
        """What to hold during a forward pass: on a GPU they go one after the other, each with its own arithmetic of products; where
        BLAS computes it has one thread; compiled kernels need nothing."""
        if self.device != "cpu":
            return self.kernels.products(self.precision)
        return threads.one_blas_thread() if self.kernels.BLOCK is None else contextlib.nullcontext()

    def _pack(self, name: str) -> Any:
        with self._lock:
            if name not in self._packed:
                whole, _, part = name.partition(":")
                weight = self._weights[whole]
                if part:
                    weight = np.split(weight, 3)[("query", "key", "value").index(part)]
                if self.device != "cpu":
                    weight = kernels.to_device(np.ascontiguousarray(weight, self.dtype), self.device)
                if whole.endswith(".weight") and weight.ndim in (2, 4):
                    weight = self.kernels.pack_linear(weight.reshape(len(weight), -1), self.precision)
                    # From here on nobody reads the matrix itself.
                    forget_pages(self._weights[whole])
                elif self.device == "cpu":
                    # To read a few numbers of a mapped file brings whole stretches of it back into memory.
                    weight = np.array(weight)
                self._packed[name] = weight
            return self._packed[name]

    def temporary(self, name: str, *shape: int) -> np.ndarray:
        """Memory for what is used up before the same thread asks by the same name again."""
        return self.kernels.temporary(name, *shape, dtype=self.dtype)


class Pass:
    """One forward pass: what its threads share, and what each of them does.

    Parameters
    ----------
    weights : Packed
    config : ViTConfig
    images : (B, 3, height, width) float
    stride, layer : int
    want : sequence of str
        As :meth:`ViT.__call__` takes them, checked.
    """

    def __init__(
        self, weights: Packed, config: ViTConfig, images: np.ndarray, stride: int, layer: int, want: tuple[str, ...]
    ):
        c, k = config, weights.kernels
        self.weights, self.config, self.images, self.stride, self.layer, self.want = weights, c, images, stride, layer, want
        self.leading, self.positions = places(weights, c, tuple((side - c.patch) // stride + 1 for side in images.shape[2:]))
        self.first = 1 + c.registers  # the first patch among the tokens
        batch, tokens = len(images), self.first + len(self.positions)
        self.x, self.queries = (weights.temporary(name, batch, tokens, c.width) for name in ("tokens", "queries"))  # (B, T, D)
        # With two a thread may begin the next layer while others still read this one; for many tokens waiting is cheaper.
        slots = 2 if weights.device == "cpu" and batch * tokens < MANY_TOKENS else 1
        self.held = [
            k.KeyValues(batch, tokens, c.width, c.heads, weights.dtype, slot=slot, precision=weights.precision)
            for slot in range(slots)
        ]
        # Rows of the last block's output that somebody asks for: all of them, the leading ones, CLS, or none.
        self.rows = tokens if "token" in want else self.first if "register" in want else 1 if "cls" in want else 0
        by_cls = "attention" in want or "cls_state" in want
        self.query_rows = tokens if "query" in want else max(self.rows, int(by_cls))
        wanted = {
            "query": self.query_rows > 0,
            "key": "key" in want or by_cls or self.rows > 0,
            "value": "value" in want or "cls_state" in want or self.rows > 0,
        }
        self.out = {facet: weights.xp.empty(self.x.shape, self.x.dtype) for facet, there in wanted.items() if there}
        if self.rows:
            self.out["token"] = weights.xp.empty((batch, self.rows, c.width), self.x.dtype)
        # More threads than this have nothing worth their while; without blocks a thread takes whole images, for a GPU one takes all.
        self.most = 1 if weights.device == "cuda" else batch if k.BLOCK is None else -(-batch * tokens // 32)

    def run(self, member: threads.Member) -> None:
        """The pass as one thread sees it."""
        weights, c, x = self.weights, self.config, self.x
        mine = list(self.blocks(member))
        for images, rows in mine:
            self.embed(images, rows)
        for index in range(self.layer):
            held = self.held[index % len(self.held)]
            for images, rows in mine:
                y = norm(weights, c, x[images, rows], f"blocks.{index}.norm1")  # (b, n, D)
                key, value = (project(weights, y, index, part, weights.temporary(part, *y.shape)) for part in ("key", "value"))
                held.put(images, rows.start, key, value)
                project(weights, y, index, "query", self.queries[images, rows])
            member.wait()
            for images, rows in mine:
                here = x[images, rows]
                gathered = held.attend(self.queries[images, rows], images, weights.temporary("gathered", *here.shape))
                finish(weights, c, here, gathered, index, out=here)
            if len(self.held) == 1:
                member.wait()
        self.read(member, mine)

    def read(self, member: threads.Member, mine: Sequence[tuple[slice, slice]]) -> None:
        """What is wanted of the last block, and nothing else of it."""
        weights, c, index, out = self.weights, self.config, self.layer, self.out
        held = self.held[index % len(self.held)]
        for images, rows in mine:
            y = norm(weights, c, self.x[images, rows], f"blocks.{index}.norm1")
            for facet in [name for name in ("query", "key", "value") if name in out]:
                here = slice(rows.start, min(rows.stop, self.query_rows)) if facet == "query" else rows
                if here.start < here.stop:
                    out[facet][images, here] = project(weights, y[:, : here.stop - here.start], index, facet)
            if self.rows:
                held.put(images, rows.start, out["key"][images, rows], out["value"][images, rows])
        if not self.rows:
            return
        member.wait()
        for images, rows in mine:
            rows = slice(rows.start, min(rows.stop, self.rows))
            if rows.start < rows.stop:
                gathered = held.attend(out["query"][images, rows], images)
                y = finish(weights, c, self.x[images, rows], gathered, index)
                out["token"][images, rows] = norm(weights, c, y, "norm")

    def found(self) -> dict[str, np.ndarray]:
        """The features that were asked for, once all threads are through."""
        first, got, xp = self.first, dict(self.out), self.weights.xp
        if "attention" in self.want:
            with threads.one_blas_thread():
                row = self.weights.kernels.attention_row(got["query"][:, :1], got["key"], self.config.heads)  # (B, H, T)
            got["attention"] = row[:, :, first:]
        if "cls_state" in self.want:
            got["cls_state"] = xp.stack([part[:, 0] for part in (self.x, got["query"], got["key"], got["value"])], axis=1)
        if self.rows:
            got |= {"cls": got["token"][:, 0], "register": got["token"][:, 1:first]}
        got |= {facet: got[facet][:, first:] for facet in FACETS if facet in got}
        return {name: xp.ascontiguousarray(got[name], self.images.dtype) for name in self.want}

    def blocks(self, member: threads.Member) -> Iterator[tuple[slice, slice]]:
        """A thread's blocks of tokens: images and rows, a slice each."""
        batch, tokens, _ = self.x.shape
        longest = self.weights.kernels.BLOCK
        if self.weights.device == "cuda":
            yield slice(0, batch), slice(0, tokens)
            return
        if longest is None:
            for image in range(*member.share(batch)):
                yield slice(image, image + 1), slice(0, tokens)
            return
        start, stop = member.share(batch * tokens, 8)
        while start < stop:
            image, row = divmod(start, tokens)
            left = min(stop - start, tokens - row)
            # Of about equal lengths, in multiples of 8: 200 rows are 104 and 96.
            rows = min(left, -(-left // -(-left // longest) // 8) * 8)
            yield slice(image, image + 1), slice(row, row + rows)
            start += rows

    def embed(self, images: slice, rows: slice) -> None:
        """Tokens of a block as they enter the network: CLS and registers, and patches with their positions."""
        w, first = self.weights, self.first
        if rows.start < first:
            self.x[images, rows.start : min(first, rows.stop)] = self.leading[rows.start : rows.stop]
        start, stop = max(rows.start, first) - first, rows.stop - first
        if start < stop:
            weight, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
            patches = w.kernels.patch_embedding(
                self.images[images], weight, bias, self.stride, patch=self.config.patch, start=start, stop=stop
            )
            w.xp.add(patches, self.positions[start:stop], out=self.x[images, first + start : first + stop])


def places(weights: Packed, config: ViTConfig, grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The leading tokens (1 + R, D), CLS with its position and registers without; the positions of the patches (N, D).

    Those of the last grid are kept: the images of a collection are often of one size.
    """
    kept = weights.places
    if kept is not None and kept[0] == grid:
        return kept[1]
    table = weights.original("pos_embed")[0]  # (1 + N0, D), or (N0, D) where CLS has no position
    first = len(table) - config.grid[0] * config.grid[1]
    with threads.one_blas_thread():
        positions = resample_positions(table[first:].reshape(*config.grid, config.width), grid, config.pos_embed)
    leading = weights.original("cls_token")[0] + table[:first].sum(axis=0)  # (1, D)
    if config.registers:
        leading = np.concatenate([leading, weights.original("register_tokens")[0]])  # (1 + R, D)
    found = leading, positions.reshape(-1, config.width)
    if weights.device != "cpu":
        found = tuple(kernels.to_device(part.astype(weights.dtype), weights.device) for part in found)
    weights.places = grid, found
    return found


def project(weights: Packed, y: np.ndarray, index: int, part: str, out: np.ndarray | None = None) -> np.ndarray:
    """Query, key or value (b, n, D) of normed tokens: a third of the fused projection."""
    name = f"blocks.{index}.attn.qkv"
    return weights.kernels.linear(y, weights[f"{name}.weight:{part}"], weights.get(f"{name}.bias:{part}"), out=out)


def finish(
    weights: Packed, config: ViTConfig, x: np.ndarray, gathered: np.ndarray, index: int, out: np.ndarray | None = None
) -> np.ndarray:
    """What a block does once its tokens (b, n, D) have gathered from all others: projection and MLP, each on a residual branch."""
    k, name = weights.kernels, f"blocks.{index}"

    def layer(y: np.ndarray, which: str, **further: Any) -> np.ndarray:
        return k.linear(y, weights[f"{name}.{which}.weight"], weights.get(f"{name}.{which}.bias"), **further)

    x = layer(gathered, "attn.proj", scale=weights.get(f"{name}.ls1.gamma"), residual=x, out=out)
    y = norm(weights, config, x, f"{name}.norm2")
    if config.swiglu:
        y, last = k.swiglu(layer(y, "mlp.w12")), "mlp.w3"  # (b, n, 2 E) -> (b, n, E)
    else:
        hidden = weights.temporary("hidden", *y.shape[:-1], len(weights[f"{name}.mlp.fc1.bias"]))
        y, last = layer(y, "mlp.fc1", activation="gelu", out=hidden), "mlp.fc2"  # (b, n, 4 D)
    return layer(y, last, scale=weights.get(f"{name}.ls2.gamma"), residual=x, out=out)


def norm(weights: Packed, config: ViTConfig, x: np.ndarray, name: str) -> np.ndarray:
    """LayerNorm of the last axis, in memory that the next one takes again."""
    out = weights.temporary("normed", *x.shape)
    return weights.kernels.layernorm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], config.eps, out)


def precision_for(wish: str, device: str = "cpu") -> str:
    """The precision that is meant: "auto" is fp32 on the CPU, fp16 on a GPU.

    Raises
    ------
    UsageError
        For one that the device lacks; it names those that there are.
    """
    if wish == "auto":
        return "fp16" if device == "cuda" else "fp32"
    if wish == "fp32":
        return wish
    there = kernels.for_device(device).precisions()
    if wish not in there:
        where = "GPU" if device == "cuda" else "CPU"
        raise UsageError(f"there is no precision {wish!r} on this machine's {where}; choose among auto, {', '.join(there)}")
    return wish

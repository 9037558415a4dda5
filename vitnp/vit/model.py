"""The vision transformer that users call."""

from __future__ import annotations

import numbers
import threading
from collections.abc import Iterable, Mapping

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError
from vitnp.kernels.threads import team
from vitnp.options import FEATURES
from vitnp.vit.config import ViTConfig
from vitnp.vit.forward import ForwardPass, PackedWeights, block_tail, norm


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
        Of the operands of products, see :meth:`to`.
    device : {"auto", "cpu", "cuda"}
        Where it computes, see :meth:`to`.

    Examples
    --------
    >>> vit = vitnp.load_vit("auto")                                    # doctest: +SKIP
    >>> features = vit(images, features=("key", "cls"))                     # doctest: +SKIP
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
        self.precision, self._requested_precision = resolve_precision(precision, self.device), precision
        self._packed: PackedWeights | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        c = self.config
        return f"ViT({self.name or 'unnamed'}: depth {c.depth}, width {c.width}, heads {c.heads}, patch {c.patch})"

    def grid(self, height: int, width: int, stride: int | None = None) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels."""
        patch, stride = self.config.patch, stride or self.config.patch
        return (height - patch) // stride + 1, (width - patch) // stride + 1

    def __call__(
        self,
        images: np.ndarray,
        features: str | Iterable[str] = ("key",),
        *,
        layer: int = -1,
        stride: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Features of one block, and nothing that isn't asked for.

        Keys of a block need neither its attention nor its MLP; CLS needs one query row.

        Parameters
        ----------
        images : (B, 3, height, width) float
            Taken in the weights' type. Normalized with ``config.mean`` and ``config.std``; sides are multiples of the patch.
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
        features = (features,) if isinstance(features, str) else tuple(features)
        layer, stride = self._checked(images, features, layer, stride)
        images = kernels.to_device(images, self.device).astype(self.dtype, copy=False)
        weights = self._ready()
        with weights.exclusive():
            forward = ForwardPass(weights, self.config, images, stride, layer, features)
            team.run_team(forward.run, most=forward.most)
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
        with weights.exclusive():
            for index, region in enumerate(regions):
                patches = xp.asarray(np.flatnonzero(region))
                keys = xp.concatenate([own_key, key[None, patches]], axis=1)  # (1, 1 + patches of the region, D)
                values = xp.concatenate([own_value, value[None, patches]], axis=1)
                attn_out = weights.kernels.attention(query, keys, values, c.heads)
                out = block_tail(weights, c, entering, attn_out, c.depth - 1)
                found[index] = norm(weights, c, out, "norm")[0, 0]
        return kernels.to_host(found)

    @property
    def dtype(self) -> np.dtype:
        """Of the weights, and so of everything computed; float32 on a GPU."""
        return np.dtype(np.float32) if self.device == "cuda" else self.weights["cls_token"].dtype

    @property
    def numerics(self) -> str:
        """What the last bits of its features depend on beside the weights: the precision, and "cuda" where that's the device.

        On one device the same photograph gives the same bits every time. Keys from a GPU are within 1e-5 of the CPU's in fp32, 2e-3
        in fp16, relative to the longest key.
        """
        return self.precision if self.device == "cpu" else f"{self.device} {self.precision}"

    def to(self, *, device: str | None = None, precision: str | None = None) -> ViT:
        """Return the same network on another device or in another precision; the weights are shared.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}, optional
            Where the network computes and leaves its results; "auto" is "cuda" where that works, else "cpu".
        precision : {"auto", "fp32", "tf32", "bf16", "fp16"}, optional
            Precision of the operands of linear layers and attention; sums are always float32. "auto" is fp32 on the CPU and fp16
            on a GPU, where fp16 applies to all values between layers too.

        Raises
        ------
        DeviceError
            If "cuda" was asked for and does not work: the reason, and what to do.
        UsageError
            If the device lacks the precision; the message lists those it has.

        Examples
        --------
        >>> vit = vitnp.load_vit("auto").to(device="cuda", precision="fp16")      # doctest: +SKIP
        """
        return ViT(
            self.config,
            self.weights,
            name=self.name,
            source=self.source,
            sha256=self.sha256,
            device=self.device if device is None else device,
            precision=self._requested_precision if precision is None else precision,
        )

    def _ready(self) -> PackedWeights:
        """The weights as the kernels want them, made so at the first call."""
        with self._lock:
            if self._packed is None:
                self._packed = PackedWeights(self.weights, self.precision, self.device)
            return self._packed

    def __getstate__(self) -> dict[str, object]:
        # Packed weights and locks stay behind: whoever gets the network packs for its own machine.
        return {name: value for name, value in self.__dict__.items() if name not in ("_packed", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _packed=None, _lock=threading.Lock())

    def _checked(
        self, images: np.ndarray, features: tuple[str, ...], layer: int, stride: int | None
    ) -> tuple[int, int]:
        """Layer counted from 0 and stride in pixels, once everything is known to make sense."""
        c = self.config
        unknown = [name for name in features if name not in FEATURES]
        if unknown or not features:
            raise UsageError(f"unknown features {unknown}; choose among {', '.join(FEATURES)}")
        if not isinstance(layer, numbers.Integral) or not -c.depth <= layer < c.depth:
            raise UsageError(
                f"layer {layer} is out of range; this network has blocks 0 to {c.depth - 1} (or -{c.depth} to -1)"
            )
        stride = c.patch if stride is None else stride
        if not isinstance(stride, numbers.Integral) or not 0 < stride <= c.patch or c.patch % stride:
            raise UsageError(f"stride {stride} doesn't fit; choose a divisor of the patch, {c.patch}")
        if not isinstance(images, np.ndarray) and kernels.device_of(images) == "cpu":
            raise UsageError(
                f"images are a {type(images).__name__}; expected an array of the shape (B, 3, height, width)"
            )
        if images.ndim != 4 or images.shape[1] != 3 or any(side % c.patch or not side for side in images.shape[2:]):
            raise UsageError(
                f"images have the shape {images.shape}; expected (B, 3, height, width) with sides that are multiples of {c.patch}"
            )
        return layer % c.depth, stride


def resolve_precision(wish: str, device: str = "cpu") -> str:
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
        raise UsageError(
            f"there is no precision {wish!r} on this machine's {where}; choose among auto, {', '.join(there)}"
        )
    return wish

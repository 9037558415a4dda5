"""The vision transformer that users call."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError
from vitnp.kernels.threads import team
from vitnp.kernels.threads.fork import unlocked_in_child
from vitnp.options import FEATURES
from vitnp.vit import forward_gpu
from vitnp.vit.config import ViTConfig
from vitnp.vit.forward import ForwardPass, block_tail, final_norm
from vitnp.vit.forward_cpu import CPUForwardPass
from vitnp.vit.weights import PackedWeights

# What some precisions need, for error messages.
NEEDED = {
    ("bf16", "cpu"): ", which would need AVX512-BF16",
    ("int8", "cpu"): ", which would need SSE2 of x86 or the dot products of ARM (asimddp)",
    ("int8", "cuda"): ": int8 is for the CPU",
}


class ViT:
    """A vision transformer that returns the features of any block.

    Parameters
    ----------
    config : ViTConfig
        Architecture and preprocessing.
    weights : mapping of str to float array
        Under the names of DINO's files; linear weights are (outputs, inputs). float32, or float64 to check results.
    name, source, sha256 : str
        Name, file and SHA-256 of the checkpoint, kept for records of what was computed.
    precision : {"auto", "fp32", "tf32", "bf16", "fp16", "int8"}
        Precision of linear layers and attention, see :meth:`to`.
    device : {"auto", "cpu", "cuda"}
        Device to compute on, see :meth:`to`.

    Examples
    --------
    >>> vit = vitnp.load_vit("auto")                                    # doctest: +SKIP
    >>> features = vit(images, features=("key", "cls"))                 # doctest: +SKIP
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
        self._lock = unlocked_in_child(threading.Lock())

    def __repr__(self) -> str:
        c = self.config
        return f"ViT({self.name or 'unnamed'}: depth {c.depth}, width {c.width}, heads {c.heads}, patch {c.patch})"

    def grid(self, height: int, width: int, stride: int | None = None) -> tuple[int, int]:
        """Return the rows and columns of patches of an image of this size in pixels."""
        return self.config.patch_grid(height, width, stride)

    def __call__(
        self,
        images: np.ndarray,
        features: str | Iterable[str] = ("key",),
        *,
        layer: int = -1,
        stride: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Compute features of one block.

        Only what the features need is computed: the keys of a block need neither its attention nor its MLP, and CLS
        needs one row of queries.

        Parameters
        ----------
        images : (B, 3, height, width) float
            NumPy or CuPy array, normalized with ``config.mean`` and ``config.std``, converted to the dtype of the
            weights. Height and width are multiples of the patch size.
        features : str or iterable of str
            Names of the features:

            - "query", "key", "value": (B, N, D), of the patches, heads side by side; in networks with rotary position
              embeddings before the rotation;
            - "key_rotated": (B, N, D), the keys after it;
            - "token": (B, N, D), of the patches, after the final norm;
            - "cls": (B, D), "register": (B, R, D), after the final norm;
            - "attention": (B, H, N), from CLS to the patches; the softmax is over all T tokens, so a row sums to less
              than 1;
            - "cls_state": (B, 4, D), CLS as it enters the block and its query, key and value, for :meth:`region_cls`.
        layer : int
            Block to read, from 0; negative numbers count from the last block.
        stride : int, optional
            Pixels between patches, a divisor of the patch size; by default the patch size. Smaller strides give
            overlapping patches.

        Returns
        -------
        dict of str to float array
            One entry per feature, in the dtype of the weights, on the device of the ViT.

        Raises
        ------
        UsageError
            If a feature is unknown, the layer or stride out of range, or the images have the wrong shape.
        """
        features = (features,) if isinstance(features, str) else tuple(features)
        layer, stride = self._check_request(images, features, layer, stride)
        images = kernels.to_device(images, self.device).astype(self.dtype, copy=False)
        weights = self._packed_weights()
        with weights.compute_context():
            if self.device == "cuda":
                return forward_gpu.forward(weights, images, stride, layer, features)
            Forward = CPUForwardPass if weights.kernels.SHARES_TOKENS else ForwardPass
            forward = Forward(weights, images, stride, layer, features)
            team.run_team(forward.run, forward.max_threads)
            return forward.result()

    def region_cls(
        self,
        state: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        regions: np.ndarray,
        *,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Compute CLS tokens of regions of an image.

        The last block runs for the CLS row alone, and its attention is restricted to CLS and the patches of one region.
        This describes a region as well as a forward pass over the cropped image, at a small fraction of its cost.
        Register tokens are left out because they describe the whole image.

        Parameters
        ----------
        state : (4, D) float
            "cls_state" of the image in the last block.
        key, value : (N, D) float
            Keys and values of the image in the last block.
        regions : (G, N) bool
            Patches of each region. In an empty region CLS attends to itself alone.
        size : (int, int)
            Height and width of the image in pixels, as it entered the network. Only networks with rotary position
            embeddings need it: each patch keeps its place in the image.

        Returns
        -------
        (G, D) float
            CLS tokens after the final norm, in host memory.

        Raises
        ------
        UsageError
            If the checkpoint has no final norm, or the size is missing or that of another number of patches.
        """
        self.require_final_norm(("cls",))
        config, weights = self.config, self._packed_weights()
        rotation = self._rotation_of_image(weights, np.shape(regions)[1], size)
        xp = weights.xp
        state, key, value = (xp.asarray(kernels.to_device(x, self.device), weights.dtype) for x in (state, key, value))
        x, query, cls_key, cls_value = (row[None, None] for row in state)  # (1, 1, D) each
        result = xp.empty((len(regions), config.width), self.dtype)
        with weights.compute_context():
            for index, region in enumerate(regions):
                patches = xp.asarray(np.flatnonzero(region))
                keys = xp.concatenate([cls_key, key[None, patches]], axis=1)  # (1, 1 + patches of the region, D)
                values = xp.concatenate([cls_value, value[None, patches]], axis=1)
                # The patches of the image follow CLS and the registers.
                tokens = xp.concatenate([xp.zeros(1, patches.dtype), config.num_prefix_tokens + patches])
                turned = None if rotation is None else rotation[tokens]
                attn_out = weights.kernels.attention(query, keys, values, config.heads, turned)
                out = block_tail(weights, x, attn_out, config.depth - 1)
                final_norm(weights, out, 1, result[index, None, None])
        return kernels.to_host(result)

    def _rotation_of_image(
        self, weights: PackedWeights, n_patches: int, size: tuple[int, int] | None
    ) -> np.ndarray | None:
        """Return the rotation (1 + R + N, d) of the tokens of an image, or None if positions aren't rotary.

        The number of patches tells the stride.
        """
        patch = self.config.patch
        if not self.config.rotary:
            return None
        for stride in range(1, patch + 1):
            if size is not None and min(size) >= patch and patch % stride == 0:
                grid = self.grid(*size, stride)
                if grid[0] * grid[1] == n_patches:
                    return weights.rotation(grid, stride)
        raise UsageError(
            f"size must be the height and width in pixels of the image of these {n_patches} patches, because the "
            f"network has rotary position embeddings, got {size}"
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the weights and features; float32 on a GPU."""
        return np.dtype(np.float32) if self.device == "cuda" else self.weights["cls_token"].dtype

    @property
    def numerics(self) -> str:
        """Device and precision as far as they change the last bits of features, such as "fp32" or "cuda fp16".

        One device computes the same bits for the same image every time. Keys from a GPU differ from those of the CPU by
        at most 1e-5 in fp32 and 2e-3 in fp16, relative to the longest key.
        """
        return self.precision if self.device == "cpu" else f"{self.device} {self.precision}"

    def to(self, *, device: str | None = None, precision: str | None = None) -> ViT:
        """Return the same network on another device or in another precision; the weights are shared.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}, optional
            Where the network computes and leaves its results; "auto" is "cuda" where that works, else "cpu".
        precision : {"auto", "fp32", "tf32", "bf16", "fp16", "int8"}, optional
            Precision of the operands of linear layers and attention; sums are float32. "auto" is fp32 on the CPU and
            fp16 on a GPU, where fp16 applies to all values between layers too. "int8", on the CPU, is for linear
            layers: 8-bit activations with a scale for each token, 8-bit weights with a scale for each output, and
            32-bit integer sums; attention is in bf16 where the processor has it, else in fp32.

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

    def _packed_weights(self) -> PackedWeights:
        with self._lock:
            if self._packed is None:
                self._packed = PackedWeights(self.weights, self.config, self.precision, self.device)
            return self._packed

    def __getstate__(self) -> dict[str, object]:
        # Packed weights depend on the machine, and locks can't be pickled.
        return {name: value for name, value in self.__dict__.items() if name not in ("_packed", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _packed=None, _lock=unlocked_in_child(threading.Lock()))

    def _check_request(
        self, images: np.ndarray, features: tuple[str, ...], layer: int, stride: int | None
    ) -> tuple[int, int]:
        """Check the arguments of a call; return the layer counted from 0 and the stride in pixels."""
        patch = self.config.patch
        unknown = [name for name in features if name not in FEATURES]
        if unknown or not features:
            raise UsageError(f"features must be among {', '.join(FEATURES)}, got {unknown or 'none'}")
        self.require_final_norm(features)
        self.config.require_rotary(features)
        if not isinstance(images, np.ndarray) and kernels.device_of(images) == "cpu":
            raise UsageError(f"images must be an array of shape (B, 3, height, width), got a {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != 3 or any(side % patch or not side for side in images.shape[2:]):
            raise UsageError(
                f"images must have the shape (B, 3, height, width) with sides that are multiples of {patch}, "
                f"got {images.shape}"
            )
        return self.config.resolve_layer(layer), self.config.resolve_stride(stride)

    def require_final_norm(self, features: Iterable[str]) -> None:
        """Check that the checkpoint has the final norm if features are taken after it.

        Raises
        ------
        UsageError
            If it has none, as a MAE fine-tuned with average pooling.
        """
        after_norm = [name for name in features if name in ("token", "cls", "register")]
        if after_norm and "norm.weight" not in self.weights:
            raise UsageError(
                f"{after_norm[0]!r} is taken after the final norm, which this checkpoint lacks: use the facet key, "
                "query or value at the image level, or a checkpoint with norm.weight"
            )


def resolve_precision(precision: str, device: str = "cpu") -> str:
    """Resolve "auto", which is fp32 on the CPU and fp16 on a GPU, and check that the device has the precision.

    Raises
    ------
    UsageError
        If the device lacks the precision; the message lists those it has.

    Examples
    --------
    >>> resolve_precision("auto", "cpu")
    'fp32'
    """
    if precision == "auto":
        return "fp16" if device == "cuda" else "fp32"
    if precision == "fp32":
        return precision
    available = kernels.for_device(device).precisions()
    if precision not in available:
        raise UsageError(
            f"there is no precision {precision!r} on this machine's {'GPU' if device == 'cuda' else 'CPU'}"
            f"{NEEDED.get((precision, device), '')}; choose among auto, {', '.join(available)}"
        )
    return precision

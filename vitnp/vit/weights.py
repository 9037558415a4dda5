"""Weights of a ViT in the form that the kernels of one device take."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.errors import DeviceError
from vitnp.io.mmap import forget_pages
from vitnp.kernels.threads import blas
from vitnp.kernels.threads.fork import unlocked_in_child
from vitnp.vit.config import ViTConfig
from vitnp.vit.pos_embed import resample_abs_pos_embed
from vitnp.vit.rotary import rotation_table

# Linear layers of the halves of a block: names in the table of compiled kernels and in files, and LayerScale.
_QKV = [(name, f"attn.qkv:{name}", None) for name in ("query", "key", "value")]
_PROJ = ("proj", "attn.proj", "ls1.gamma")
_LAYERS_OF_HALVES = {
    swiglu: (_QKV, [_PROJ, ("fc1", f"mlp.{first}", None), ("fc2", f"mlp.{second}", "ls2.gamma")])
    for swiglu, first, second in ((False, "fc1", "fc2"), (True, "w12", "w3"))
}


class PackedWeights:
    """Weights in the form that the kernels of one device take, each converted when it is first used.

    Parameters
    ----------
    weights : mapping of str to float array
        In host memory, under the names of DINO's files.
    config : ViTConfig
    precision : str
        Precision of the operands of linear layers and attention.
    device : {"cpu", "cuda"}
        Device that the converted weights live on.

    Attributes
    ----------
    kernels : module
        Operations of the device; those of :mod:`vitnp.kernels.reference` for weights that aren't float32.
    xp : module
        NumPy, or CuPy for arrays on a GPU.
    dtype : numpy.dtype
        Dtype of the inputs and outputs of every layer.
    graphs : GraphCache or None
        CUDA graphs of forward passes; None on the CPU.

    Raises
    ------
    DeviceError
        If the GPU has less memory than the converted weights take.
    """

    def __init__(
        self, weights: Mapping[str, np.ndarray], config: ViTConfig, precision: str = "fp32", device: str = "cpu"
    ):
        self.config, self.precision, self.device = config, precision, device
        dtype = weights["cls_token"].dtype
        self.kernels = kernels.for_device("reference" if device == "cpu" and dtype != np.float32 else device)
        self.xp = kernels.array_module(kernels.to_device(np.empty(0), device))
        self.dtype = np.dtype(np.float16 if precision == "fp16" else np.float32) if device == "cuda" else dtype
        if device == "cuda":
            _require_gpu_memory(weights, precision, self.kernels.total_bytes())
        self.graphs: Any = self.kernels.GraphCache() if device == "cuda" else None
        self._weights = weights
        self._packed: dict[str, Any] = {}
        self._layers: dict[str, tuple[Any, Any]] = {}
        self._blocks: Any = None
        self._in_blocks: set[tuple[int, int]] = set()
        self._lock = unlocked_in_child(threading.Lock())
        # Grid of the last image, with its prefix tokens and position embeddings; grid and stride, with the rotation.
        self._embeddings: tuple[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] | None = None
        self._rotation: tuple[tuple[tuple[int, int], int], np.ndarray] | None = None

    def __getitem__(self, name: str) -> Any:
        """Return a tensor by name; the suffix ":query", ":key" or ":value" selects a third of the fused projection."""
        packed = self._packed.get(name)
        return self._pack(name) if packed is None else packed

    def get(self, name: str) -> Any:
        """Return a tensor by its name, or None if the network has none of that name."""
        return self[name] if self.has(name) else None

    def has(self, name: str) -> bool:
        """Return whether the network has a tensor of this name."""
        return name.partition(":")[0] in self._weights

    def layer(self, name: str) -> tuple[Any, Any]:
        """Return weight and bias of a linear layer, or None for a bias that it lacks; suffixes as in __getitem__."""
        found = self._layers.get(name)
        if found is None:
            whole, colon, part = name.partition(":")
            found = self[f"{whole}.weight{colon}{part}"], self.get(f"{whole}.bias{colon}{part}")
            self._layers[name] = found
        return found

    def norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return weight and bias of a LayerNorm."""
        return self[f"{name}.weight"], self[f"{name}.bias"]

    def blocks(self, last: int, *, whole: bool) -> Any:
        """Return the blocks up to the last one for compiled kernels; of that one the first half, or the whole.

        Returns
        -------
        BlockWeights
            See :mod:`vitnp.kernels.cpu.transformer`.
        """
        for index in range(last + 1):
            for half in (0, 1) if whole or index < last else (0,):
                if (index, half) not in self._in_blocks:
                    self._add_to_blocks(index, half)
        return self._blocks

    def _add_to_blocks(self, index: int, half: int) -> None:
        """Add half of a block to those for compiled kernels; two threads may do the same at the same time."""
        c, block = self.config, f"blocks.{index}"
        with self._lock:
            if self._blocks is None:
                self._blocks = self.kernels.BlockWeights(
                    c.depth, c.width, c.heads, c.eps, self.precision, swiglu=c.swiglu
                )
        self._blocks.set_norm(index, f"norm{half + 1}", *self.norm(f"{block}.norm{half + 1}"))
        for name, layer, gamma in _LAYERS_OF_HALVES[c.swiglu][half]:
            self._blocks.set_linear(
                index, name, *self.layer(f"{block}.{layer}"), self.get(f"{block}.{gamma}") if gamma else None
            )
        self._in_blocks.add((index, half))

    def n_outputs(self, layer: str) -> int:
        """Return the number of outputs of a linear layer."""
        return len(self._weights[f"{layer}.weight"])

    def prefix_and_pos_embed(self, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the prefix tokens (1 + R, D) and the position embeddings (N, D) of the patches.

        The prefix tokens are CLS with its position embedding and the registers, which have none. A network with rotary
        position embeddings has no others: None. The arrays of the last grid are kept, since consecutive images often
        have the same size.

        Parameters
        ----------
        grid : (int, int)
            Rows and columns of patches.
        """
        last = self._embeddings  # read once: another thread may replace it
        if last is not None and last[0] == grid:
            return last[1]
        prefix_tokens: np.ndarray = self._weights["cls_token"][0]  # (1, D)
        pos_embed = None
        if not self.config.rotary:
            table = self._weights["pos_embed"][0]  # (1 + N0, D), or (N0, D) if CLS has no position embedding
            n_cls = len(table) - self.config.grid[0] * self.config.grid[1]
            trained = table[n_cls:].reshape(*self.config.grid, self.config.width)
            with blas.one_blas_thread():
                pos_embed = resample_abs_pos_embed(trained, grid, self.config.pos_embed)
            prefix_tokens = prefix_tokens + table[:n_cls].sum(axis=0)
        if self.config.registers:
            prefix_tokens = np.concatenate([prefix_tokens, self._weights["register_tokens"][0]])
        if self.device != "cpu":
            prefix_tokens = kernels.to_device(prefix_tokens.astype(self.dtype), self.device)
            pos_embed = None if pos_embed is None else kernels.to_device(pos_embed.astype(self.dtype), self.device)
        self._wait()
        self._embeddings = grid, (prefix_tokens, pos_embed)
        return prefix_tokens, pos_embed

    def rotation(self, grid: tuple[int, int], stride: int) -> np.ndarray | None:
        """Return the rotation (1 + R + N, d) of each token, or None if positions aren't rotary; the last one is kept.

        It is float32, whatever the precision of the rest, or float64 with weights of that type.
        """
        if not self.config.rotary:
            return None
        last = self._rotation  # read once: another thread may replace it
        if last is not None and last[0] == (grid, stride):
            return last[1]
        dtype = self.dtype if self.device == "cpu" else np.float32
        table = rotation_table(self._weights["rope_embed.periods"], self.config, grid, stride, dtype)
        rotation = kernels.to_device(table, self.device)
        self._wait()
        self._rotation = (grid, stride), rotation
        return rotation

    def compute_context(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context manager to run a forward pass in.

        On a GPU, passes run one at a time, because the precision of matrix products is a setting of the whole process.
        The reference kernels run on one BLAS thread, since the forward pass spreads the work itself.
        """
        if self.device != "cpu":
            return self.kernels.products(self.precision)
        return blas.one_blas_thread() if not self.kernels.SHARES_TOKENS else contextlib.nullcontext()

    def temporary(self, name: str, *shape: int) -> np.ndarray:
        """Return uninitialized memory, valid until the same thread asks for the same name again."""
        return self.kernels.temporary(name, *shape, dtype=self.dtype)

    def _wait(self) -> None:
        """Wait until a GPU has what other threads will use on other streams."""
        if self.device != "cpu":
            self.kernels.wait()

    def _pack(self, name: str) -> Any:
        with self._lock:
            if name not in self._packed:
                whole, _, part = name.partition(":")
                converted = self._convert(whole, part)
                self._wait()
                self._packed[name] = converted
            return self._packed[name]

    def _precision_of(self, name: str) -> str:
        """Return the precision of a linear layer: in int8 that of pixels is finer, at a hundredth of the work."""
        if self.precision != "int8" or not name.startswith("patch_embed"):
            return self.precision
        return "bf16" if "bf16" in self.kernels.precisions() else "fp32"

    def _convert(self, name: str, part: str) -> Any:
        if part and self.device != "cpu":  # a third of what the other blocks use as a whole
            if name not in self._packed:
                self._packed[name] = self._convert(name, "")
            third, index = len(self._packed[name]) // 3, ("query", "key", "value").index(part)
            return self._packed[name][index * third : (index + 1) * third]
        tensor = original = self._weights[name]
        if part:
            tensor = np.split(tensor, 3)[("query", "key", "value").index(part)]
        if self.device != "cpu":
            tensor = kernels.to_device(np.ascontiguousarray(tensor, self.dtype), self.device)
        if name.endswith(".weight") and tensor.ndim in (2, 4):
            packed = self.kernels.pack_linear(tensor.reshape(len(tensor), -1), self._precision_of(name))
            forget_pages(original)  # only the packed copy is read from here on
            return packed
        # A copy, because reading a few numbers of a mapped file brings many pages of it back into memory.
        return np.array(tensor) if self.device == "cpu" else tensor


def _require_gpu_memory(weights: Mapping[str, np.ndarray], precision: str, total: int) -> None:
    """Check that the weights fit into a GPU's memory, rather than fail somewhere in the middle of a network."""
    each = 2 if precision in ("fp16", "bf16") else 4
    needed = each * sum(weight.size for weight in weights.values())
    if needed > total:
        raise DeviceError(
            f"the weights of this network take {needed / 1e9:.1f} GB in {precision}, but the GPU has "
            f"{total / 1e9:.1f} GB of memory; choose {'' if each == 2 else '--precision fp16, '}a smaller network or "
            "--device cpu"
        )

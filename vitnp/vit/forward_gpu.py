"""One forward pass of a vision transformer on a GPU, recorded as a CUDA graph for each shape of images.

Queries, keys and values of a block are one matrix product, and attention reads them where they lie. The host only
launches kernels, so a graph can launch all of them at once: see :class:`vitnp.kernels.cuda.graphs.GraphCache`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitnp.kernels.threads import team
from vitnp.vit.forward import ForwardPass
from vitnp.vit.weights import PackedWeights


class GPUForwardPass(ForwardPass):
    """Forward pass of all images at once, because the GPU itself distributes the work; see :class:`ForwardPass`."""

    def run(self, worker: team.Worker) -> None:
        """Take all images through the network."""
        self.forward(slice(0, len(self.images)))

    def self_attention(self, y: np.ndarray, index: int) -> np.ndarray:
        """Compute the attention (B, T, D) of normalized tokens to each other in a block that isn't the last."""
        w, config, name = self.weights, self.config, f"blocks.{index}.attn.qkv"
        qkv = w.kernels.linear(y, w[f"{name}.weight"], w.get(f"{name}.bias"))  # (B, T, 3 D)
        return w.kernels.attend_fused(qkv, config.heads, self.rotation, precision=w.precision)

    def attend(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Compute the attention (B, M, D) of the first M tokens to all tokens."""
        w = self.weights
        return w.kernels.attend(query, key, value, self.config.heads, self.rotation, precision=w.precision)


def forward(
    weights: PackedWeights, images: np.ndarray, stride: int, layer: int, features: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Return the features of images by name; arguments as for :class:`vitnp.vit.forward.ForwardPass`."""

    def prepare(images: np.ndarray) -> Callable[[], dict[str, np.ndarray]]:
        state = GPUForwardPass(weights, images, stride, layer, features)

        def compute() -> dict[str, np.ndarray]:
            state.run(team.Worker(0, 1, None))
            return state.result()

        return compute

    return weights.graphs.run((stride, layer, features), [images], prepare)

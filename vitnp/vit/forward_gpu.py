"""One forward pass of a vision transformer on a GPU, recorded as a CUDA graph for each shape of images.

Queries, keys and values of a block are one matrix product, and attention reads them where they lie. The host only
launches kernels, so a graph can launch all of them at once: see :class:`vitnp.kernels.cuda.graphs.GraphCache`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitnp.kernels.threads import team
from vitnp.vit.forward import Chunk, ForwardPass, block_tail, final_norm, norm, project
from vitnp.vit.weights import PackedWeights


class GPUForwardPass(ForwardPass):
    """Forward pass of all images at once, because the GPU itself distributes the work; see :class:`ForwardPass`."""

    def _allocate_buffers(self, batch: int, n_tokens: int) -> None:
        """Allocate nothing: CuPy's pool reuses the memory of each block."""

    def run(self, worker: team.Worker) -> None:
        """Take all tokens through the network."""
        w, config = self.weights, self.config
        everything: Chunk = slice(0, self.x.shape[0]), slice(0, self.x.shape[1])
        self.prepare_tokens(*everything)
        for index in range(self.layer):
            name = f"blocks.{index}"
            y = norm(w, self.x, f"{name}.norm1")
            qkv = w.kernels.linear(y, w[f"{name}.attn.qkv.weight"], w.get(f"{name}.attn.qkv.bias"))  # (B, T, 3 D)
            attn_out = w.kernels.attend_fused(qkv, config.heads, self.rotation, precision=w.precision)
            block_tail(w, self.x, attn_out, index, out=self.x)
        self.read_last_block(worker, [everything])

    def read_last_block(self, worker: team.Worker, chunks: list[Chunk]) -> None:
        """Compute those rows of the last block that the features need, and nothing else of it."""
        w, index, out, n_output = self.weights, self.layer, self.out, self.n_output_rows
        y = norm(w, self.x, f"blocks.{index}.norm1")
        for facet in [name for name in ("query", "key", "value") if name in out]:
            n_rows = self.n_query_rows if facet == "query" else self.x.shape[1]
            project(w, y[:, :n_rows], index, facet, out[facet][:, :n_rows])
        if n_output:
            query = out["query"][:, :n_output]
            attn_out = w.kernels.attend(
                query, out["key"], out["value"], self.config.heads, self.rotation, precision=w.precision
            )
            final_norm(w, block_tail(w, self.x[:, :n_output], attn_out, index), self.n_prefix, out["token"])


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

"""One forward pass of a vision transformer on several threads of the CPU, by compiled kernels.

Tokens interact in attention alone, so a thread takes rows of tokens, of any image, through a whole block, and waits for
the others until all keys and values are there: see :mod:`vitnp.kernels.cpu.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitnp.kernels.threads import team
from vitnp.vit.forward import Chunk, ForwardPass
from vitnp.vit.weights import PackedWeights

# Smallest share of tokens that is worth a thread.
MIN_TOKENS_PER_THREAD = 32


class CPUForwardPass(ForwardPass):
    """Forward pass whose threads share the tokens of all images; see :class:`ForwardPass`."""

    def __init__(self, weights: PackedWeights, images: np.ndarray, stride: int, layer: int, features: tuple[str, ...]):
        super().__init__(weights, images, stride, layer, features)
        batch, n_tokens, _ = self.x.shape
        self.max_threads = -(-batch * n_tokens // MIN_TOKENS_PER_THREAD)
        final = {}
        if self.n_output_rows:
            norm, prefix = "norm", "cls_norm" if weights.has("cls_norm.weight") else "norm"
            final = {"norm": weights.norm(norm), "prefix_norm": weights.norm(prefix), "n_prefix": self.n_prefix}
        self.blocks = weights.kernels.BlocksPass(
            weights.blocks(layer, whole=self.n_output_rows > 0),
            self.x,
            layer,
            self.out,
            n_query_rows=self.n_query_rows,
            rotation=self.rotation,
            **final,
        )

    def run(self, worker: team.Worker) -> None:
        """Do one thread's part of the pass."""
        for chunk in self.chunks(worker):
            self.prepare_tokens(*chunk)
        self.blocks.run(worker)

    def chunks(self, worker: team.Worker) -> Iterator[Chunk]:
        """Split off one thread's share of the tokens, image by image."""
        batch, n_tokens, _ = self.x.shape
        start, stop = worker.share(batch * n_tokens, 8)
        while start < stop:
            image, row = divmod(start, n_tokens)
            n_rows = min(stop - start, n_tokens - row)
            yield slice(image, image + 1), slice(row, row + n_rows)
            start += n_rows

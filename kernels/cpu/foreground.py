"""Sweeps of foreground estimation: bit by bit what the reference computes, without its temporary arrays."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.reference.foreground import SMOOTHNESS
from vitnp.kernels.threads import team

# Fewer pixels than this are not worth waking a thread.
MIN_PIXELS_PER_THREAD = 1 << 13


def foreground_sweeps(
    colors: np.ndarray,
    alpha: np.ndarray,
    neighbors: np.ndarray,
    n_red: int,
    n_sweeps: int,
    foreground: np.ndarray,
    background: np.ndarray,
) -> None:
    n_black = len(alpha) - n_red

    def work(worker: team.Worker) -> None:
        red, black = worker.share(n_red), worker.share(n_black)
        for _ in range(n_sweeps):
            for first, last in (red, (n_red + black[0], n_red + black[1])):
                _sweep(colors, alpha, neighbors, first, last, foreground, background)
                worker.wait()

    team.run_team(work, most=max(1, len(alpha) // MIN_PIXELS_PER_THREAD))


# Without fused operations, so that the bits are those of NumPy.
@kernel(IN(2), IN(1), IN(2, types.int32), types.int64, types.int64, OUT(2), OUT(2), fastmath=False)
def _sweep(colors, alpha, neighbors, first, last, foreground, background):
    """Update the pixels `first` to `last`, of one color of the chessboard."""
    zero, one = np.float32(0), np.float32(1)
    for i in range(first, last):
        n0, n1, n2, n3 = neighbors[i, 0], neighbors[i, 1], neighbors[i, 2], neighbors[i, 3]
        a = alpha[i]
        b = one - a
        w0 = SMOOTHNESS + abs(a - alpha[n0])
        w1 = SMOOTHNESS + abs(a - alpha[n1])
        w2 = SMOOTHNESS + abs(a - alpha[n2])
        w3 = SMOOTHNESS + abs(a - alpha[n3])
        total = w0 + w1 + w2 + w3
        scale = one / (total + a * a + b * b)
        for c in range(3):
            f = w0 * foreground[n0, c] + w1 * foreground[n1, c] + w2 * foreground[n2, c] + w3 * foreground[n3, c]
            g = w0 * background[n0, c] + w1 * background[n1, c] + w2 * background[n2, c] + w3 * background[n3, c]
            f /= total
            g /= total
            residual = (colors[i, c] - a * f - b * g) * scale
            f = min(max(f + a * residual, zero), one)
            g = min(max(g + b * residual, zero), one)
            foreground[i, c] = colors[i, c] if a == one else f
            background[i, c] = colors[i, c] if a == zero else g

"""Sweeps of foreground estimation: the compiled kernel against NumPy, and NumPy against the equations."""

from __future__ import annotations

import numpy as np
import pytest
from vitnp.kernels import reference
from vitnp.kernels.reference.foreground import SMOOTHNESS
from vitnp.kernels.threads import pool

from vitnp import kernels


def problem(height: int, width: int, seed: int = 0) -> dict[str, np.ndarray | int]:
    """All pixels of a random picture, red fields of a chessboard first."""
    rng = np.random.default_rng(seed)
    y, x = np.divmod(np.arange(height * width), width)
    order = np.argsort((y + x) & 1, kind="stable")
    number = np.empty(height * width, np.int32)
    number[order] = np.arange(height * width)
    y, x = y[order], x[order]
    beside = [(y, np.maximum(x - 1, 0)), (y, np.minimum(x + 1, width - 1))]
    beside += [(np.maximum(y - 1, 0), x), (np.minimum(y + 1, height - 1), x)]
    alpha = rng.random(height * width).astype(np.float32)
    alpha[rng.random(len(alpha)) < 0.3], alpha[rng.random(len(alpha)) < 0.3] = 0, 1
    colors, foreground, background = rng.random((3, height * width, 3)).astype(np.float32)
    return {
        "colors": colors,
        "alpha": alpha,
        "neighbors": np.stack([number[row * width + column] for row, column in beside], axis=1),
        "n_red": int(((y + x) % 2 == 0).sum()),
        "foreground": foreground,
        "background": background,
    }


def swept(module, n_sweeps: int, **arrays) -> tuple[np.ndarray, np.ndarray]:
    arrays["foreground"], arrays["background"] = arrays["foreground"].copy(), arrays["background"].copy()
    module.foreground_sweeps(**arrays, n_sweeps=n_sweeps)
    return arrays["foreground"], arrays["background"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (23, 31), (150, 170)])
def test_the_compiled_kernel_gives_the_bits_of_numpy(shape):
    arrays = problem(*shape)
    expected = swept(reference, 4, **arrays)
    for n_threads in (1, 3):
        with pool.thread_limit(n_threads):
            found = swept(kernels.for_device("cpu"), 4, **arrays)
        for values, other in zip(found, expected):
            np.testing.assert_array_equal(values, other)


def test_many_sweeps_solve_the_equations_of_the_paper():
    """The 2 x 2 system of each pixel (Germer et al., section 3), with known colors fixed, solved by brute force."""
    arrays = problem(3, 4, seed=1)
    arrays["colors"] = (0.5 + 0.01 * (arrays["colors"] - 0.5)).astype(np.float32)  # nothing has to be clipped
    alpha, near, colors = arrays["alpha"].astype(float), arrays["neighbors"], arrays["colors"].astype(float)
    n = len(alpha)
    matrix, right = np.zeros((2 * n, 2 * n)), np.zeros((2 * n, 3))
    for i in range(n):
        a, b = alpha[i], 1 - alpha[i]
        for at, own, share in ((i, a, (a, b)), (n + i, b, (a, b))):
            if own == 1:
                matrix[at, at], right[at] = 1, colors[i]
                continue
            matrix[at, i], matrix[at, n + i] = own * share[0], own * share[1]
            right[at] = own * colors[i]
            for j in near[i]:
                weight = SMOOTHNESS + abs(a - alpha[j])
                matrix[at, at] += weight
                matrix[at, at - i + j] -= weight
    solution = np.linalg.solve(matrix, right)
    assert solution.min() >= 0 and solution.max() <= 1
    found = np.concatenate(swept(reference, 4000, **arrays))
    np.testing.assert_allclose(found, solution, atol=2e-3)

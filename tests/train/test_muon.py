"""Updates of Muon."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from vitnp.weights.train.muon import Muon, orthogonalize


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 64), (64, 256)])
def test_orthogonalization_equalizes_singular_values(shape):
    matrices = torch.stack([normal(*shape), 1e-3 * normal(*shape, seed=1)])
    values = torch.linalg.svdvals(orthogonalize(matrices))
    # The smallest singular values of a square matrix need more iterations.
    assert values.max() < 1.3 and values[:, :-4].min() > 0.5


def test_orthogonalization_approximates_the_polar_factor():
    # For U S V' the iteration tends to U V'.
    matrix = normal(32, 128)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(orthogonalize(matrix[None])[0].flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_updates_of_all_shapes():
    width = 32
    shapes = {"qkv": (3 * width, width), "proj": (width, width), "fc1": (4 * width, width), "fc2": (width, 4 * width)}
    matrices = [torch.zeros(shape) for shape in shapes.values()]
    for index, matrix in enumerate(matrices):
        matrix.grad = normal(*matrix.shape, seed=index)
    Muon(matrices, width, weight_decay=0.0).step(0.1)
    step = dict(zip(shapes, matrices))
    parts = [
        *step["qkv"].chunk(3),
        step["proj"],
        step["fc1"] / 2,
        step["fc2"],
    ]  # fc1, which is tall, has a step larger by sqrt(4)
    for part in parts:
        values = torch.linalg.svdvals(part) / 0.1
        assert values.max() < 1.3 and values[:-4].min() > 0.5
    for matrix in matrices:
        assert (matrix * matrix.grad).sum() < 0


def test_weight_decay():
    matrix = torch.ones(32, 32)
    matrix.grad = torch.zeros(32, 32)
    Muon([matrix], 32, weight_decay=0.5).step(0.1)
    assert torch.allclose(matrix, torch.full((32, 32), 0.95))


def test_resuming_from_a_state_changes_nothing():
    def run(split):
        matrix = torch.zeros(32, 32)
        muon = Muon([matrix], 32)
        for step in range(4):
            if step == split:
                state, muon = muon.state_dict(), Muon([matrix], 32)
                muon.load_state_dict(state)
            matrix.grad = normal(32, 32, seed=step)
            muon.step(0.1)
        return matrix

    assert torch.equal(run(None), run(2))

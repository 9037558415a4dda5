"""The target pool uses each batch three times, also across interruptions; the losses equal their definition."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toy import network
from vitnp.weights.train import torch_vit
from vitnp.weights.train.losses import FeatureScales, distillation_losses
from vitnp.weights.train.targets import USES_PER_BATCH, TargetBatch, TargetPool


def crops_at(index: int) -> torch.Tensor:
    return torch.full((2, 3, 4, 4), float(index))


def make_pool(size: int, first: int = 0, computed: list[int] | None = None) -> TargetPool:
    """Return a pool of batches that contain their index; `computed` collects the indices given to the teacher."""
    indices = itertools.count(first)

    def teacher(crops):
        if computed is not None:
            computed.append(int(crops[0, 0, 0, 0]))
        return TargetBatch(crops, [crops + 1], crops + 2)

    return TargetPool(lambda: crops_at(next(indices)), crops_at, teacher, size, seed=0)


def index_of(batch: TargetBatch) -> int:
    index = int(batch.crops[0, 0, 0, 0])
    assert batch.states[0][0, 0, 0, 0] == index + 1 and batch.key[0, 0, 0, 0] == index + 2
    assert batch.crops.dtype == batch.key.dtype == torch.float32
    return index


def test_batches_of_a_pool_are_used_three_times():
    pool = make_pool(size=10)
    indices = [index_of(pool(step)) for step in range(200)]
    uses = collections.Counter(indices)
    state = pool.state_dict()
    remaining = dict(state["pool"])
    assert all(uses[index] + remaining.get(index, 0) == USES_PER_BATCH for index in uses)
    assert len(remaining) <= 10
    assert indices[:10] == list(range(10))
    assert state["next_batch"] == len(uses) < 90


def test_without_a_pool_batches_are_used_once():
    pool = make_pool(size=0)
    assert [index_of(pool(step)) for step in range(20)] == list(range(20))


def test_resuming_from_a_state_changes_nothing():
    uninterrupted = make_pool(size=7)
    expected = [index_of(uninterrupted(step)) for step in range(80)]
    first = make_pool(size=7)
    indices = [index_of(first(step)) for step in range(40)]
    state = first.state_dict()
    computed = []
    second = make_pool(size=7, first=state["next_batch"], computed=computed)
    second.load_state_dict(state)
    indices += [index_of(second(step)) for step in range(40, 80)]
    assert indices == expected
    # Batches of the pool are computed again once, when they are needed.
    assert max(collections.Counter(computed).values()) == 1


def test_losses_against_numpy():
    vit = network(depth=2)
    student = torch_vit.to_torch(vit)
    rng = np.random.default_rng(0)

    def tokens():
        return rng.standard_normal((3, 50, 32)) * rng.uniform(0.5, 2, 32)

    def to_torch(x):
        return torch.tensor(x, dtype=torch.float32)

    target_states, states = [tokens() for _ in range(3)], [tokens() for _ in range(3)]
    target_key, key, final_tokens = tokens(), tokens(), tokens()
    batch = TargetBatch(torch.zeros(1), [to_torch(x) for x in target_states], to_torch(target_key))
    scales = FeatureScales.measure(batch, to_torch(final_tokens))
    losses = distillation_losses(
        student, vit.config, [to_torch(x) for x in states], to_torch(key), batch, to_torch(final_tokens), scales
    )

    def relative_mse(a, b):
        return np.mean(((a - b) / (b.std((0, 1), ddof=1) + 1e-4)) ** 2)

    last = states[-1]
    normed = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    normed = normed * vit.weights["norm.weight"] + vit.weights["norm.bias"]
    norms = np.linalg.norm(key, axis=-1) * np.linalg.norm(target_key, axis=-1)
    expected = {
        "hidden": np.mean([relative_mse(a, b) for a, b in zip(states, target_states)]),
        "key": relative_mse(key, target_key),
        "token": np.mean((normed - final_tokens) ** 2) / final_tokens.var(ddof=1),
        "cls": np.mean((normed - final_tokens)[:, 0] ** 2) / final_tokens.var(ddof=1),
        "cosine": np.mean((np.sum(key * target_key, -1) / norms)[:, 1:]),
    }
    expected["loss"] = expected["hidden"] + expected["key"] + 0.5 * expected["token"] + 0.5 * expected["cls"]
    assert losses.keys() == expected.keys()
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-4)

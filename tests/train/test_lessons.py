"""Lessons come as often as they should, interrupted or not; and what is asked of the student about them."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toy import network
from vitnp.weights.train import torch_vit
from vitnp.weights.train.losses import Scales, errors
from vitnp.weights.train.targets import USES, Batch, Targets


def crops_of(number: int) -> torch.Tensor:
    return torch.full((2, 3, 4, 4), float(number))


def make(kept: int, first: int = 0, taught: list | None = None) -> Targets:
    numbers = itertools.count(first)

    def teach(crops):
        if taught is not None:
            taught.append(int(crops[0, 0, 0, 0]))
        return Batch(crops, [crops + 1], crops + 2)

    return Targets(lambda: crops_of(next(numbers)), crops_of, teach, kept, seed=0)


def number_of(lesson: Batch) -> int:
    number = int(lesson.crops[0, 0, 0, 0])
    assert lesson.states[0][0, 0, 0, 0] == number + 1 and lesson.key[0, 0, 0, 0] == number + 2
    assert lesson.crops.dtype == lesson.key.dtype == torch.float32
    return number


def test_kept_lessons_come_three_times():
    lessons = make(kept=10)
    given = [number_of(lessons(step)) for step in range(200)]
    counts = collections.Counter(given)
    left = {number: left for number, left, _ in lessons._kept}
    assert all(counts[number] + left.get(number, 0) == USES for number in counts)
    assert len(lessons._kept) <= 10
    assert given[:10] == list(range(10))
    assert lessons.given == len(counts) < 90


def test_nothing_kept():
    lessons = make(kept=0)
    assert [number_of(lessons(step)) for step in range(20)] == list(range(20))


def test_the_same_after_an_interruption():
    unbroken = make(kept=7)
    want = [number_of(unbroken(step)) for step in range(80)]
    first = make(kept=7)
    got = [number_of(first(step)) for step in range(40)]
    state = first.state_dict()
    taught = []
    second = make(kept=7, first=state["given"], taught=taught)
    second.load_state_dict(state)
    got += [number_of(second(step)) for step in range(40, 80)]
    assert got == want
    # What was kept is made again once, when it's needed.
    assert max(collections.Counter(taught).values()) == 1


def test_errors_against_numpy():
    vit = network(depth=2)
    student = torch_vit.to_torch(vit)
    rng = np.random.default_rng(0)

    def drawn():
        return rng.standard_normal((3, 50, 32)) * rng.uniform(0.5, 2, 32)

    theirs, mine, their_key, my_key, final = (
        [drawn() for _ in range(3)],
        [drawn() for _ in range(3)],
        drawn(),
        drawn(),
        drawn(),
    )

    def to(x):
        return torch.tensor(x, dtype=torch.float32)

    lesson = Batch(to(np.zeros(1)), [to(x) for x in theirs], to(their_key))
    scales = Scales.of(lesson, to(final))
    found = errors(student, vit.config, [to(x) for x in mine], to(my_key), lesson, to(final), scales)

    def relative(a, b):
        return np.mean(((a - b) / (b.std((0, 1), ddof=1) + 1e-4)) ** 2)

    last = mine[-1]
    normed = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    normed = normed * vit.weights["norm.weight"] + vit.weights["norm.bias"]
    want = {
        "hidden": np.mean([relative(a, b) for a, b in zip(mine, theirs)]),
        "key": relative(my_key, their_key),
        "token": np.mean((normed - final) ** 2) / final.var(ddof=1),
        "cls": np.mean((normed - final)[:, 0] ** 2) / final.var(ddof=1),
        "cosine": np.mean(
            np.sum(my_key * their_key, -1)[:, 1:]
            / (np.linalg.norm(my_key, axis=-1) * np.linalg.norm(their_key, axis=-1))[:, 1:]
        ),
    }
    want["loss"] = want["hidden"] + want["key"] + 0.5 * want["token"] + 0.5 * want["cls"]
    assert found.keys() == want.keys()
    assert {name: float(value) for name, value in found.items()} == pytest.approx(want, rel=1e-4)

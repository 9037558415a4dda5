"""Ranking and grouping of vectors, against plain NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from vitnp.retrieval import grouping, ranking
from vitnp.retrieval.grouping import group_rows
from vitnp.retrieval.ranking import nearest_rows


def unit_rows(count: int, dim: int = 12, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float((x * y).sum() / np.sqrt(np.square(x).sum() * np.square(y).sum()))


@pytest.fixture
def small_blocks(monkeypatch):
    """Make even few rows more than a block."""
    monkeypatch.setattr(ranking, "_ROWS", 7)
    monkeypatch.setattr(ranking, "_QUERIES", 2)
    monkeypatch.setattr(grouping, "_ROWS", 8)
    monkeypatch.setattr(grouping, "_LEADERS", 5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("count", [1, 5, 30, 99])
def test_neighbors_are_those_of_brute_force_ties_to_the_earlier_row(count):
    vectors = unit_rows(30)
    vectors[[4, 11, 12, 29]] = vectors[8]  # ties, within a block and across blocks
    rows = np.random.default_rng(1).permutation(30)
    queries = np.concatenate([vectors[[8, 3]], unit_rows(3, seed=2)])
    for query, (positions, cosines) in zip(queries, nearest_rows(queries, vectors, rows, count)):
        exact = np.array([cosine(query, vectors[row]) for row in rows])
        expected = np.lexsort((np.arange(30), -exact))[:count]
        assert positions.tolist() == expected.tolist()
        assert np.allclose(cosines, exact[expected], rtol=0, atol=1e-15)


def test_many_ties_at_the_limit_do_not_depend_on_the_block(monkeypatch):
    vectors = np.repeat(unit_rows(2, dim=50), [300, 3], axis=0)
    for size in (16_384, 64, 5):
        monkeypatch.setattr(ranking, "_ROWS", size)
        [(positions, _)] = nearest_rows(vectors[:1], vectors, np.arange(303), 270)
        assert positions.tolist() == list(range(270))


def test_cosines_that_float32_cannot_tell_apart_are_ranked():
    angles = np.array([3e-4, 1e-4, 2e-4, 0])  # cosines differ by less than 1e-7
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    [(positions, _)] = nearest_rows(vectors[3:], vectors, np.arange(4), 4)
    assert positions.tolist() == [3, 1, 2, 0]


def groups_by_hand(vectors: np.ndarray, rows: np.ndarray, threshold: float) -> list[int]:
    """Leader clustering, word for word."""
    leaders: list[int] = []
    result = []
    for position, row in enumerate(rows):
        cosines = [cosine(vectors[row], vectors[rows[leader]]) for leader in leaders]
        if leaders and max(cosines) >= threshold:
            result.append(leaders[int(np.argmax(cosines))])
        else:
            leaders.append(position)
            result.append(position)
    return result


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.7, 0.95, 1.0])
def test_groups_are_those_of_the_rule(threshold):
    centers = unit_rows(6, dim=5)
    noise = 0.25 * np.random.default_rng(3).standard_normal((60, 5))
    vectors = (centers[np.arange(60) % 6] + noise).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[50] = vectors[7]
    rows = np.random.default_rng(4).permutation(60)
    leaders, cosines = group_rows(vectors, rows, threshold)
    assert leaders.tolist() == groups_by_hand(vectors, rows, threshold)
    for position, leader in enumerate(leaders):
        expected = cosine(vectors[rows[position]], vectors[rows[leader]])
        assert abs(cosines[position] - expected) < 1e-12 and cosines[position] >= threshold - 1e-15


def test_a_chain_is_not_one_group():
    angles = np.radians(np.arange(0, 90, 4))  # each 4 degrees from the next, the ends 88 degrees apart
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    leaders, _ = group_rows(vectors, np.arange(len(vectors)), np.cos(np.radians(5)))
    assert (np.abs(angles - angles[leaders]) <= np.radians(5)).all() and len(set(leaders.tolist())) > 5


@pytest.mark.parametrize("size", [1, 2, 100])
def test_between_two_equally_similar_representatives_the_first_is_taken(monkeypatch, size):
    monkeypatch.setattr(grouping, "_ROWS", size)
    monkeypatch.setattr(grouping, "_LEADERS", size)
    vectors = np.array([[0.8, 0.6], [0.8, -0.6], [1, 0]], np.float32)
    leaders, _ = group_rows(vectors, np.array([1, 0, 2]), 0.7)
    assert leaders.tolist() == [0, 1, 0]


def test_no_rows():
    leaders, cosines = group_rows(unit_rows(3), np.empty(0, np.int64), 0.9)
    assert len(leaders) == len(cosines) == 0


@pytest.mark.parametrize("function", [nearest_rows, group_rows])
def test_the_number_of_threads_changes_nothing(function):
    vectors = unit_rows(500, dim=64)
    arguments = (
        (vectors[:40], vectors, np.arange(500), 9) if function is nearest_rows else (vectors, np.arange(500), 0.3)
    )
    one, several = function(*arguments, n_threads=1), function(*arguments, n_threads=3)
    assert np.array_equal(np.array(one), np.array(several))

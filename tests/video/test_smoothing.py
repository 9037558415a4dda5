"""Patch scores smoothed along time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitnp.video.smoothing import Smoothable, SmoothingConfig, match_patches, smooth

GRID, DIM = (4, 5), 8


def unit(keys: np.ndarray) -> np.ndarray:
    return (keys / np.linalg.norm(keys, axis=-1, keepdims=True)).astype(np.float32)


def clip(seed: int, n_frames: int, scene: np.ndarray | None = None) -> list[Smoothable[int]]:
    """Return frames of one scene: the same keys with some noise, and random scores."""
    rng = np.random.default_rng(seed)
    scene = rng.standard_normal((*GRID, DIM)) if scene is None else scene
    return [
        Smoothable(
            rng.random(GRID, np.float32),
            float(rng.random()),
            unit(scene + 0.2 * rng.standard_normal(scene.shape)),
            f"frame {seed} {number}",
            number,
        )
        for number in range(n_frames)
    ]


def smoothed_by_loops(frames: list[Smoothable[int]], config: SmoothingConfig) -> list[np.ndarray]:
    """Smooth patch by patch, as the documentation says it."""
    scores = [frame.score.astype(float) for frame in frames]
    (rows, columns), near = GRID, range(-config.reach, config.reach + 1)
    for _ in range(config.steps):
        fresh = []
        for t, frame in enumerate(frames):
            total, weight = scores[t].copy(), np.ones(GRID)
            for other in (t - 1, t + 1):
                if not 0 <= other < len(frames):
                    continue
                for y, x in itertools.product(range(rows), range(columns)):
                    places = [(y + i, x + j) for i in near for j in near if 0 <= y + i < rows and 0 <= x + j < columns]
                    ranked = sorted((float(frame.keys[y, x] @ frames[other].keys[place]), place) for place in places)
                    best = ranked[::-1][: config.neighbors]
                    for cosine, place in best:
                        share = np.exp((cosine - 1) / config.temperature) / config.neighbors
                        total[y, x] += share * scores[other][place]
                        weight[y, x] += share
            fresh.append(total / weight)
        scores = fresh
    return scores


@pytest.mark.parametrize("config", [SmoothingConfig(steps=1), SmoothingConfig(steps=3, neighbors=2, temperature=0.5)])
def test_agrees_with_plain_loops(config):
    frames = clip(0, 5)
    for got, expected in zip(smooth(frames, config), smoothed_by_loops(frames, config)):
        np.testing.assert_allclose(got.score, expected, rtol=1e-5)


def test_noise_of_a_still_scene_becomes_smaller_and_the_scene_stays():
    rng = np.random.default_rng(0)
    truth = (np.arange(GRID[1]) < 2) * np.ones(GRID)
    scene = np.where(truth[..., None] > 0, unit(rng.standard_normal(DIM)), unit(rng.standard_normal(DIM)))
    frames = [
        Smoothable((truth + 0.2 * rng.standard_normal(GRID)).astype(np.float32), 1.0, unit(scene), str(t), None)
        for t in range(12)
    ]
    before = np.stack([frame.score for frame in frames])
    after = np.stack([frame.score for frame in smooth(frames)])
    assert np.abs(np.diff(after, axis=0)).mean() < np.abs(np.diff(before, axis=0)).mean() / 4
    assert np.abs(after - truth).max() < 0.25 < np.abs(before - truth).max()


def test_scores_follow_what_moves():
    """A patch that moves by one column per frame keeps its score, and leaves none behind."""
    rng = np.random.default_rng(1)
    background, thing = unit(rng.standard_normal((2, DIM)))
    keys, scores = np.tile(background, (5, *GRID, 1)), np.zeros((5, *GRID), np.float32)
    for t in range(5):
        keys[t, 1, t], scores[t, 1, t] = thing, 1
    scores[2, 1, 2] = 0.1  # missed in one frame
    frames = [Smoothable(score, 1.0, one, "", None) for score, one in zip(scores, keys)]
    after = [frame.score for frame in smooth(frames, SmoothingConfig(steps=2, neighbors=1, temperature=0.05))]
    assert after[2][1, 2] > 0.5
    assert all(np.delete(score.ravel(), GRID[1] + t).max() < 0.01 for t, score in enumerate(after))


def test_nothing_is_carried_over_a_cut():
    one, other = clip(0, 4), clip(1, 4)
    assert match_patches(one[-1].keys, other[0].keys) is None
    together = list(smooth(one + other))
    alone = [*smooth(one), *smooth(other)]
    for got, expected in zip(together, alone):
        np.testing.assert_array_equal(got.score, expected.score)
        assert (got.confidence, got.fingerprint) == (expected.confidence, expected.fingerprint)


def test_another_grid_is_a_cut():
    frames = clip(0, 2)
    assert match_patches(frames[0].keys, frames[1].keys[:, :-1]) is None


def test_fingerprint_tells_of_every_frame_that_the_score_depends_on():
    def fingerprints(changed: int | None) -> list[str]:
        frames = clip(0, 7)
        if changed is not None:
            frames[changed] = Smoothable(**{**vars(frames[changed]), "fingerprint": "another"})
        return [frame.fingerprint for frame in smooth(frames, SmoothingConfig(steps=2))]

    before, after = fingerprints(None), fingerprints(0)
    assert [a != b for a, b in zip(before, after)] == [True] * 3 + [False] * 4


def test_reads_only_as_far_ahead_as_it_has_steps():
    read = []

    def endless():
        (frame,) = clip(0, 1)
        for number in itertools.count():
            read.append(number)
            yield frame

    config = SmoothingConfig(steps=3)
    for number, _ in enumerate(itertools.islice(smooth(endless(), config), 20)):
        assert len(read) <= number + config.steps + 2


def test_without_steps_scores_stay():
    frames = clip(0, 3)
    assert list(smooth(frames, SmoothingConfig(steps=0))) == frames

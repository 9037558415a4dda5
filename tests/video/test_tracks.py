"""Classes decided along the tracks of regions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import vitnp
from bench.quality.clips import moving_pair
from vitnp.method.prototypes import Prototypes, fit_prototypes
from vitnp.video.smoothing import SmoothingConfig
from vitnp.video.tracks import RegionEvidence, link_regions, smooth_evidence

GRID, DIM = (3, 8), 6


def scene(seed: int = 0) -> np.ndarray:
    """Return unit keys of two objects of two columns each, one on the left and one on the right."""
    rng = np.random.default_rng(seed)
    background, left, right = rng.standard_normal((3, DIM))
    keys = np.tile(background, (*GRID, 1))
    keys[:, 1:3], keys[:, 5:7] = left, right
    return (keys / np.linalg.norm(keys, axis=-1, keepdims=True)).astype(np.float32)


def columns(*ranges: tuple[int, int]) -> np.ndarray:
    """Return regions (G, N) of whole columns."""
    patches = np.zeros((len(ranges), *GRID), bool)
    for region, (start, stop) in zip(patches, ranges):
        region[:, start:stop] = True
    return patches.reshape(len(ranges), GRID[0] * GRID[1])


def frame(evidence, *ranges: tuple[int, int], keys: np.ndarray | None = None, name: str = "") -> RegionEvidence[None]:
    evidence = np.asarray(evidence, float)
    return RegionEvidence(scene() if keys is None else keys, columns(*ranges), evidence, name, None)


LEFT, RIGHT = (1, 3), (5, 7)


def test_regions_are_linked_whatever_their_order():
    one, other = frame(np.eye(2), LEFT, RIGHT), frame(np.eye(2), RIGHT, LEFT)
    assert link_regions(one, other).tolist() == [1, 0]
    assert link_regions(one, frame(np.eye(2)[:1], RIGHT)).tolist() == [1]


def test_what_moves_stays_linked_and_what_is_new_is_not():
    keys = np.roll(scene(), 1, axis=1)
    after = frame(np.zeros((3, 2)), (0, 1), (2, 4), (6, 8), keys=keys)
    assert link_regions(frame(np.eye(2), LEFT, RIGHT), after).tolist() == [-1, 0, 1]


def test_nothing_is_linked_over_a_cut_or_without_regions():
    one = frame(np.eye(2), LEFT, RIGHT)
    assert link_regions(one, frame(np.eye(2), LEFT, RIGHT, keys=scene(1))).tolist() == [-1, -1]
    assert link_regions(frame(np.zeros((0, 2))), one).tolist() == [-1, -1]
    assert link_regions(one, frame(np.zeros((0, 2)))).tolist() == []


def test_evidence_is_the_mean_over_the_track_so_far_and_the_frames_ahead():
    rng = np.random.default_rng(0)
    evidence = rng.random((7, 2, 3))
    # The regions are numbered the other way round in every second frame, and the right one is missing from frame 5 on.
    frames = [
        frame(each[:1], LEFT) if t >= 5 else frame(each, LEFT, RIGHT) if t % 2 else frame(each[::-1], RIGHT, LEFT)
        for t, each in enumerate(evidence)
    ]
    for t, smoothed in enumerate(smooth_evidence(frames, SmoothingConfig(steps=2, hold=0))):
        left, right = evidence[: t + 3, 0].mean(axis=0), evidence[: min(t + 3, 5), 1].mean(axis=0)
        expected = [left] if t >= 5 else [left, right] if t % 2 else [right, left]
        np.testing.assert_allclose(smoothed.evidence, expected)


@pytest.mark.parametrize("lead, expected", [(0.08, [0, 0, 0, 0, 0, 0]), (0.9, [0, 0, 0, 1, 1, 1])])
def test_class_is_kept_until_another_is_clearly_nearer(lead, expected):
    evidence = [[0.05, 0.0]] * 2 + [[0.0, lead]] * 4
    frames = [frame([each], LEFT) for each in evidence]
    smoothed = list(smooth_evidence(frames, SmoothingConfig(steps=1, hold=0.5)))
    assert [int(each.evidence[0].argmax()) for each in smoothed] == expected


def test_every_shot_decides_by_itself():
    shots = [[frame([[seed, 1.0]], LEFT, keys=scene(seed), name=f"{seed}") for _ in range(3)] for seed in (0, 1)]
    together = [each.evidence.tolist() for each in smooth_evidence(shots[0] + shots[1], SmoothingConfig(hold=0))]
    assert together == [[[0.0, 1.0]]] * 3 + [[[1.0, 1.0]]] * 3


def test_only_a_few_frames_are_held():
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield frame(np.eye(2), LEFT, RIGHT)

    for number, _ in enumerate(itertools.islice(smooth_evidence(endless(), SmoothingConfig(steps=3)), 20)):
        assert len(read) == number + 4


def test_fingerprint_tells_of_the_frames_that_a_class_depends_on():
    def fingerprints(changed: int) -> list[str]:
        frames = [frame(np.eye(2), LEFT, RIGHT, name=f"{number} {number == changed}") for number in range(6)]
        return [each.fingerprint for each in smooth_evidence(frames, SmoothingConfig(steps=1))]

    assert [a != b for a, b in zip(fingerprints(-1), fingerprints(3))] == [False, False, True, True, True, True]


@pytest.mark.parametrize("voting", [False, True])
def test_largest_evidence_is_the_class(voting):
    rng = np.random.default_rng(3)
    cls, classes = rng.standard_normal((40, 8)), rng.integers(0, 3, 40)
    cls[:, :3] += 2 * np.eye(3)[classes]
    known = fit_prototypes(cls, classes)
    if voting:
        known = Prototypes(cls / np.linalg.norm(cls, axis=1, keepdims=True), classes)
    asked = rng.standard_normal((50, 8))
    np.testing.assert_array_equal(known.evidence(asked).argmax(axis=1), known.classify(asked)[0])


def test_classes_of_two_objects_stay_where_those_of_single_frames_switch():
    clip = moving_pair(1, 8, (120, 160))

    def labels(**arguments) -> np.ndarray:
        settings = {"n_classes": 3, "instances": True, "short_side": 192, "refine": "none"}
        results = vitnp.segment_video(list(clip.frames), **settings, **arguments)
        return np.stack([result.labels for result in results])

    alone, tracked = labels(smoothing=SmoothingConfig(steps=0)), labels(n_threads=1)
    assert clip.switched(alone) > 0.1 and clip.switched(tracked) == 0
    first, second = (set(found[found > 0]) for found in clip.classes(tracked).T)
    assert len(first) == len(second) == 1 and first != second
    np.testing.assert_array_equal(tracked, labels(n_threads=2, batch=3))

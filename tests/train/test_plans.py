"""Which crops a batch has: every photograph in its turn, inside its borders, and the same whenever it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.weights.train.data.sampler import SHAPES, boxes, plan


def test_every_photograph_once_a_round():
    batches = [plan(number, pictures=32, size=4, patch=16, seed=3).pictures for number in range(16)]
    for a_round in (batches[:8], batches[8:]):
        assert sorted(np.concatenate(a_round)) == list(range(32))
    assert not np.array_equal(np.concatenate(batches[:8]), np.concatenate(batches[8:]))


def test_large_crops_are_fewer():
    for number in range(40):
        one = plan(number, pictures=64, size=32, patch=16, seed=0)
        assert len(one.pictures) == len(one.area) == len(one.mirrored)
        assert len(one.pictures) * np.prod(one.shape) == pytest.approx(32 * 224**2, rel=0.05)


def test_shapes_suit_the_patch():
    for patch in (8, 14, 16, 32):
        seen = {plan(number, pictures=64, size=8, patch=patch, seed=0).shape for number in range(100)}
        assert len(seen) == len(set(SHAPES))
        assert all(side % patch == 0 for shape in seen for side in shape)


def test_a_batch_depends_on_seed_and_number_alone():
    def batch(number, seed):
        return [np.asarray(part).tolist() for part in plan(number, 50, 6, 16, seed)]

    assert batch(7, 1) == batch(7, 1)
    assert batch(7, 1) != batch(7, 2)
    assert batch(7, 1) != batch(8, 1)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_boxes_stay_inside(number, size):
    one = plan(number, 40, 8, 16, 0)
    left, top, right, bottom = boxes(one, np.tile([size], (len(one.pictures), 1))).T
    assert (left >= 0).all() and (left < right).all() and (right <= size[1] + 1e-9).all()
    assert (top >= 0).all() and (top < bottom).all() and (bottom <= size[0] + 1e-9).all()


def test_boxes_have_the_area_and_aspect_they_should():
    # In a photograph of the crop's own aspect, and with at most 80 % of its area, no side is ever shortened.
    for number in range(20):
        one = plan(number, 40, 8, 16, 0)
        one = one._replace(area=one.area * 0.8)
        left, top, right, bottom = boxes(one, np.tile([one.shape], (len(one.pictures), 1)) * 3).T
        width, height = right - left, bottom - top
        assert np.allclose(width * height, one.area * 9 * np.prod(one.shape))
        assert np.allclose(width / height, one.aspect * one.shape[1] / one.shape[0])
        assert ((one.area >= 0.45 * 0.8) & (one.aspect >= 0.85) & (one.aspect <= 1.18)).all()

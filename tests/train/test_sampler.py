"""Sampling of crops: every photograph once per epoch, boxes inside the photographs, reproducible batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.weights.train.data.sampler import SHAPES, crop_boxes, sample_crops


def test_every_photograph_once_per_epoch():
    batches = [sample_crops(index, n_pictures=32, batch_size=4, patch=16, seed=3).indices for index in range(16)]
    for epoch in (batches[:8], batches[8:]):
        assert sorted(np.concatenate(epoch)) == list(range(32))
    assert not np.array_equal(np.concatenate(batches[:8]), np.concatenate(batches[8:]))


def test_batches_of_large_crops_have_fewer():
    for index in range(40):
        params = sample_crops(index, n_pictures=64, batch_size=32, patch=16, seed=0)
        assert len(params.indices) == len(params.area) == len(params.flipped)
        assert len(params.indices) * np.prod(params.shape) == pytest.approx(32 * 224**2, rel=0.05)


def test_shapes_are_multiples_of_the_patch():
    for patch in (8, 14, 16, 32):
        shapes = {sample_crops(index, 64, 8, patch, seed=0).shape for index in range(100)}
        assert len(shapes) == len(set(SHAPES))
        assert all(side % patch == 0 for shape in shapes for side in shape)


def test_a_batch_depends_only_on_seed_and_index():
    def batch(index, seed):
        return [np.asarray(field).tolist() for field in sample_crops(index, 50, 6, 16, seed)]

    assert batch(7, 1) == batch(7, 1)
    assert batch(7, 1) != batch(7, 2)
    assert batch(7, 1) != batch(8, 1)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_boxes_are_inside_the_photograph(index, size):
    params = sample_crops(index, 40, 8, 16, 0)
    left, top, right, bottom = crop_boxes(params, np.tile([size], (len(params.indices), 1))).T
    assert (left >= 0).all() and (left < right).all() and (right <= size[1] + 1e-9).all()
    assert (top >= 0).all() and (top < bottom).all() and (bottom <= size[0] + 1e-9).all()


def test_boxes_have_the_sampled_area_and_aspect():
    # In a photograph with the crop's aspect ratio, and with at most 80 % of its area, no side is shortened.
    for index in range(20):
        params = sample_crops(index, 40, 8, 16, 0)
        params = params._replace(area=params.area * 0.8)
        left, top, right, bottom = crop_boxes(params, np.tile([params.shape], (len(params.indices), 1)) * 3).T
        width, height = right - left, bottom - top
        assert np.allclose(width * height, params.area * 9 * np.prod(params.shape))
        assert np.allclose(width / height, params.aspect * params.shape[1] / params.shape[0])
        assert ((params.area >= 0.45 * 0.8) & (params.aspect >= 0.85) & (params.aspect <= 1.18)).all()

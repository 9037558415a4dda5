"""Connected components from runs, against scipy.ndimage.label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vitnp.masks import components


@settings(derandomize=True, deadline=None, max_examples=120)
@given(height=st.integers(1, 24), width=st.integers(1, 24), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_labels_equal_those_of_scipy(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    expected, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    np.testing.assert_array_equal(components.label(mask), expected)


@pytest.mark.parametrize("side", [3, 40, 301])
def test_long_winding_components_are_connected(side):
    snake = np.zeros((side, side), bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    assert components.label(snake).max() == 1
    comb = np.zeros((side, side), bool)
    comb[:, ::2] = True
    assert components.label(comb).max() == (side + 1) // 2
    comb[-1] = True  # connected by the very last row
    assert components.label(comb).max() == 1


def test_runs_of_a_mask_larger_than_a_band():
    mask = np.zeros((1100, 1000), bool)
    mask[5:1090, 7] = mask[1095] = True
    found = components.find_runs(mask)
    assert len(found.starts) == 1086 and len(set(found.component.tolist())) == 2

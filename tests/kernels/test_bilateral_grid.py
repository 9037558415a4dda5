"""Neighbors on a bilateral grid: every implementation against a search of all pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp import kernels


@pytest.mark.parametrize("device", ["cpu", "reference"])
@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_neighbors_are_one_stride_apart(device, data):
    extents = data.draw(st.lists(st.integers(2, 4), min_size=1, max_size=5))
    strides = [int(np.prod(extents[axis + 1 :])) for axis in range(len(extents))]
    # As on a real grid, the last bin of each axis is empty, so that no stride leads to the next row.
    bins = data.draw(st.sets(st.tuples(*(st.integers(0, extent - 2) for extent in extents)), min_size=1))
    occupied = np.sort([sum(b * s for b, s in zip(vertex, strides)) for vertex in bins])
    indptr, indices = kernels.for_device(device).grid_neighbors(occupied, strides)
    assert indptr.dtype == indices.dtype == np.int32 and indptr[0] == 0
    expected = [
        [j for j, other in enumerate(occupied) if abs(int(other) - int(number)) in strides] for number in occupied
    ]
    assert [indices[start:end].tolist() for start, end in itertools.pairwise(indptr)] == expected

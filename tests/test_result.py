"""`Segmentation`: copies, pickles, and how a result is shown."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import io
import multiprocessing
import pickle

import numpy as np
import pytest
from PIL import Image

import vitnp


def photograph(seed: int = 0) -> np.ndarray:
    """An orange disc on textured green."""
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 40) ** 2 < 18**2
    noise = np.random.default_rng(seed).normal(0, 8, (60, 80, 3))
    return (np.where(disc[..., None], (235, 120, 30), (60, 110, 60)) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def result(builtin):
    return vitnp.segment_image(photograph(), builtin, short_side=64)


def assert_equal(one: vitnp.Segmentation, other: vitnp.Segmentation) -> None:
    for field in dataclasses.fields(one):
        if field.name != "seconds":
            np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)


@pytest.mark.parametrize("copied", [lambda result: pickle.loads(pickle.dumps(result)), copy.deepcopy, copy.copy])
def test_copies_are_equal(result, copied):
    other = copied(result)
    assert_equal(result, other)
    np.testing.assert_array_equal(other.mask, result.mask)
    assert other.stamp == result.stamp and other.boxes() == result.boxes()


def test_deep_copies_share_no_arrays(result):
    other = copy.deepcopy(result)
    other.soft[:] = 0
    assert result.soft.any()


def test_repr_is_one_short_line(result):
    assert "\n" not in repr(result) and len(repr(result)) < 100
    assert repr(result).startswith("Segmentation(80 x 60, foreground ") and "confidence" in repr(result)


def test_a_notebook_shows_the_overlay(result):
    with Image.open(io.BytesIO(result._repr_png_())) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(result.overlay()))


@pytest.mark.slow(reason="starts processes")
def test_a_pool_of_processes_gives_the_same_results(tmp_path, builtin):
    paths = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(paths):
        Image.fromarray(photograph(seed)).save(path)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        results = list(pool.map(vitnp.segment_image, paths))
    for path, result in zip(paths, results, strict=True):
        assert_equal(result, vitnp.segment_image(path, builtin))

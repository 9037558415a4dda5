"""`Segmentation`: copies, pickles, and how a result is shown."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import io
import json
import multiprocessing
import pickle
import sys
import warnings

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


# --- For the next program --------------------------------------------------------------------------------------------


def with_classes(result):
    labels = np.zeros(result.mask.shape, np.uint8)
    labels[5:20, 10:30], labels[30:50, 40:45] = 3, 1
    soft = np.where(labels > 0, 65535, 0).astype(np.uint16)
    return dataclasses.replace(result, soft=soft, labels=labels)


def test_to_dict_is_json(result):
    facts = json.loads(json.dumps(result.to_dict()))
    assert (facts["width"], facts["height"]) == (80, 60) and facts["share"] == pytest.approx(result.share, abs=1e-6)
    assert facts["boxes"] == [list(box) for box in result.boxes()]
    assert facts["regions"] == [{"label": 1, "box": list(result.regions[0].box), "area": int(result.mask.sum())}]
    assert facts["parameters"]["seed"] == 0 and facts["photograph"] == result.photograph


def test_regions_have_the_numbers_of_the_labels(result):
    found = with_classes(result)
    assert [region.label for region in found.regions] == [1, 3]
    assert [region.box for region in found.regions] == [(40, 30, 5, 20), (10, 5, 20, 15)]
    assert [region.area for region in found.regions] == [100, 300]
    for region in found.regions:
        np.testing.assert_array_equal(region.mask, found.labels == region.label)
    (foreground,) = result.regions
    np.testing.assert_array_equal(foreground.mask, result.mask)
    assert dataclasses.replace(result, soft=result.soft * 0).regions == []
    assert repr(found.regions[0]) == "Region(label 1, 5 x 20 at (40, 30), 2% of the photograph)"


@pytest.mark.parametrize("polygons", [None, 1.0])
def test_to_coco_is_read_by_pycocotools(result, polygons):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    found = with_classes(result)
    loaded = coco.COCO()
    loaded.dataset = json.loads(json.dumps(found.to_coco("cat.jpg", image_id=7, polygons=polygons)))
    loaded.createIndex()
    assert loaded.imgs[7]["file_name"] == "cat.jpg"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for annotation in loaded.anns.values():
            mask = loaded.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, found.labels == annotation["category_id"])


def test_plot_draws_the_overlay(result, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("agg")
    ax = result.plot()
    np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(result.overlay()))
    assert result.plot(ax) is ax


def test_plot_without_matplotlib_says_what_to_do(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(vitnp.UsageError, match="plot needs matplotlib.*pip install matplotlib"):
        result.plot()

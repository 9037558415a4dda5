"""Pseudo-labels: what the method answers, kept in files, the same after an interruption."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image
from toy import network, picture
from vitnp.weights.train import pseudo_labels as module
from vitnp.weights.train.data.packs import Picture, list_pictures
from vitnp.weights.train.pseudo_labels import PseudoLabels, make_pseudo_labels

from vitnp.errors import UsageError
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline


@pytest.fixture(scope="module")
def pipeline():
    return ImagePipeline.create(network(depth=2), Settings(), None)


@pytest.fixture
def pictures(tmp_path):
    """Five photographs, twice as high as a map."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(picture(index, 176, 264)).save(folder / f"{index}.png")
    return list_pictures([folder])


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(module, "SHARD_SIZE", 2)


def test_maps_are_the_masks_of_the_method_reduced(tmp_path, pictures, pipeline):
    labels = make_pseudo_labels(pictures, pipeline, tmp_path / "labels", n_threads=2)
    for photograph, soft, confidence in zip(pictures, labels.maps, labels.confidence, strict=True):
        result = pipeline(photograph.read())
        mean = result.soft.reshape(88, 2, 132, 2).mean(axis=(1, 3)) / 65535 * 255
        assert np.abs(soft - mean).max() <= 0.51
        assert confidence == np.float32(result.confidence)


def test_an_interruption_changes_nothing(tmp_path, pictures, pipeline):
    whole = make_pseudo_labels(pictures, pipeline, tmp_path / "whole")
    stops = itertools.chain([False, True], itertools.repeat(False))
    folder = tmp_path / "parts"
    assert make_pseudo_labels(pictures, pipeline, folder, should_stop=lambda: next(stops)) is None
    (first,) = folder.iterdir()
    before = first.stat().st_mtime_ns
    resumed = make_pseudo_labels(pictures, pipeline, folder)
    assert first.stat().st_mtime_ns == before
    assert all(map(np.array_equal, resumed.maps, whole.maps))
    assert np.array_equal(resumed.confidence, whole.confidence)
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "whole").iterdir())
    ]


def test_an_unreadable_photograph_is_not_learned_from(tmp_path, pictures, pipeline, caplog):
    broken = [pictures[0], Picture("broken.jpg", b"not an image"), pictures[1]]
    labels = make_pseudo_labels(broken, pipeline, tmp_path / "labels")
    assert "broken.jpg" in caplog.text
    assert labels.maps[1].size == 0 and labels.maps[2].size
    assert 1 not in labels.usable(0.0)


def test_a_damaged_file_is_refused(tmp_path, pictures, pipeline):
    folder = tmp_path / "labels"
    make_pseudo_labels(pictures, pipeline, folder)
    path = folder / "labels-00001.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match=r"labels-00001\.npz is damaged; remove it"):
        make_pseudo_labels(pictures, pipeline, folder)
    # The file of other photographs is no better.
    with pytest.raises(UsageError, match=r"labels-00000\.npz is damaged"):
        make_pseudo_labels(pictures[:1], pipeline, folder)


def test_only_confident_masks_with_foreground_and_background_are_usable():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    maps = [ramp, ramp, ramp // 2, ramp // 2 + 128, np.zeros((0, 0), np.uint8)]
    labels = PseudoLabels(maps, np.array([0.5, 0.4, 1, 1, 1], np.float32))
    assert labels.usable(0.5).tolist() == [0]
    assert labels.usable(0.0).tolist() == [0, 1]

"""MaskCut on planted objects, and the scores of objects against COCO annotations."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent))

from bench.quality import instances, maskcut

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def planted() -> tuple[np.ndarray, list[np.ndarray]]:
    """Two objects of unlike keys before a background, (12, 16) patches."""
    first, second = np.zeros((12, 16), bool), np.zeros((12, 16), bool)
    first[3:8, 2:7], second[6:10, 10:14] = True, True
    keys = np.tile((1.0, 0.0, 0.0), (12, 16, 1))
    keys[first], keys[second] = (0, 1, 0), (0, 0, 1)
    return keys + 0.02 * np.random.default_rng(0).standard_normal(keys.shape), [first, second]


def test_maskcut_finds_one_object_after_the_other():
    keys, truth = planted()
    found = maskcut.maskcut(keys, n_objects=2)
    assert len(found) == 2
    for each in truth:
        assert any(np.array_equal(each, other) for other in found)


def test_refinement_drops_what_it_changes_too_much():
    _, (first, _) = planted()
    rgb = first.repeat(8, axis=0).repeat(8, axis=1)[..., None] * np.array([200, 90, 40], np.uint8)
    (kept,) = maskcut.refined([first], rgb)
    assert maskcut.iou(kept, rgb[..., 0] > 0) > 0.9
    speck = np.zeros_like(first)
    speck[0, 0] = True
    assert maskcut.refined([speck], rgb) == []


def test_scores_of_perfect_and_of_missing_objects(tmp_path):
    pytest.importorskip("pycocotools")
    boxes = [(10, 10, 60, 50), (90, 20, 40, 40)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": n, "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
         "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for n, box in enumerate(boxes, 1) for x, y, w, h in [box]
    ]  # fmt: skip
    data = {
        "images": [{"id": 1, "width": 160, "height": 100, "file_name": "a.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    masks = [np.zeros((100, 160), bool) for _ in boxes]
    for mask, (x, y, w, h) in zip(masks, boxes):
        mask[y : y + h, x : x + w] = True
    codes = [(instances._encoded(mask), 0.9 / n) for n, mask in enumerate(masks, 1)]
    # Categories differ from that of the objects, which does not count.
    both = instances.score(path, {1: codes})
    assert both["AP"] == both["AR@10"] == 100 and both["first"] == both["first three"] == 100
    second = instances.score(path, {1: codes[1:]})
    assert second["AR@10"] == 50 and second["first three"] == 0

"""The exports, loaded by the programs that they are for: ``pytest -m clients``, with the extra ``clients`` installed.

Ultralytics needs torch. A program that is not installed is skipped, and named in the reason.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vitnp.export.formats.table import export_formats
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.export.results_file import ResultsWriter
from vitnp.masks.polygons import fill_polygon

pytestmark = pytest.mark.clients

NAMES = ("cat", "dog")
SHAPE = (90, 120)
COUNT = 5


def masks(seed: int) -> dict[int, np.ndarray]:
    """Return a ring of class 1 and two discs of class 2."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    distance = np.hypot(y - 45, x - 35 - seed)
    discs = (np.hypot(y - 20, x - 95) < 14) | (np.hypot(y - 70, x - 95) < 12)
    return {1: (distance < 30) & (distance > 12), 2: discs}


@pytest.fixture
def out(tmp_path):
    """Write photographs and the results of a run, exported to every format."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "in" / "sub").mkdir(parents=True)
    with ResultsWriter(out / "results.jsonl", NAMES, has_classes=True) as results:
        for seed in range(COUNT):
            name = f"{'sub/' * (seed % 2)}{seed // 2}.jpg"
            path = tmp_path / "in" / name
            Image.new("RGB", SHAPE[::-1], (40 * seed,) * 3).save(path)
            regions = (masks(seed)[1] + 2 * masks(seed)[2]).astype(np.uint8)
            records = (RegionRecord(1, 0.75, 0.5, 9), RegionRecord(2, 0.25, 0.5, 4))
            results.add(PhotographRecord(name, 0.5, records, lambda regions=regions: regions, lambda: None, path))
    return out


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("tolerance", [None, 1.0])
def test_supervision(out, tolerance):
    supervision = pytest.importorskip("supervision")
    coco, yolo = export_formats(out, ["coco", "yolo"], tolerance=tolerance, split=0)
    annotations = coco / "annotations" / "instances_default.json"
    for loaded in (
        supervision.DetectionDataset.from_coco(str(coco / "images"), str(annotations), force_masks=True),
        supervision.DetectionDataset.from_yolo(
            str(yolo / "images" / "train"), str(yolo / "labels" / "train"), str(yolo / "data.yaml"), force_masks=True
        ),
    ):
        assert len(loaded) == COUNT and loaded.classes == list(NAMES)
        for _, image, detections in loaded:
            seed = round(image.mean() / 40)
            for mask, label in zip(detections.mask, detections.class_id):
                assert iou(mask, masks(seed)[label + 1]) > 0.9


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_datumaro(out, kind):
    datumaro = pytest.importorskip("datumaro")
    (folder,) = export_formats(out, [kind])
    loaded = datumaro.Dataset.import_from(str(folder), {"coco": "coco", "voc": "voc_segmentation"}[kind])
    items = list(loaded)
    assert len(items) == COUNT
    labels = loaded.categories()[datumaro.AnnotationType.label]
    for item in items:
        seed = round(item.media.data.mean() / 40)
        found = [annotation for annotation in item.annotations if annotation.type == datumaro.AnnotationType.mask]
        assert len(found) == 2
        for annotation in found:
            number = NAMES.index(labels[annotation.label].name) + 1
            assert iou(np.asarray(annotation.image, bool), masks(seed)[number]) > 0.9999


def test_label_studio(out):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    (folder,) = export_formats(out, ["labelstudio"])
    for seed, task in enumerate(json.loads((folder / "tasks.json").read_text())):
        for result in task["predictions"][0]["result"]:
            pixels = brush.decode_rle(result["value"]["rle"]).reshape(*SHAPE, 4)
            number = NAMES.index(result["value"]["brushlabels"][0]) + 1
            np.testing.assert_array_equal(pixels[..., 3] > 0, masks(seed)[number])


def test_label_studio_accepts_the_interface_and_the_tasks(out):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    for tolerance in (None, 1.0):
        (folder,) = export_formats(out, ["labelstudio"], tolerance=tolerance)
        labels = interface.LabelInterface((folder / "config.xml").read_text())
        for task in json.loads((folder / "tasks.json").read_text()):
            assert labels.validate_task({"data": task["data"]})
            assert all(labels.validate_prediction(prediction) for prediction in task["predictions"])


def test_labelme(out):
    labelme = pytest.importorskip("labelme", reason="needs labelme", exc_type=ImportError)
    (folder,) = export_formats(out, ["labelme"])
    for path in folder.glob("*.json"):
        loaded = labelme.LabelFile(str(path))
        seed = round(np.asarray(Image.open(path.with_name(loaded.imagePath))).mean() / 40)
        assert loaded.imageData and [shape["label"] for shape in loaded.shapes] == ["cat", "dog", "dog"]
        painted = [fill_polygon(np.ravel(shape["points"]).tolist(), SHAPE) for shape in loaded.shapes]
        assert iou(painted[0], masks(seed)[1]) > 0.95 and iou(painted[1] | painted[2], masks(seed)[2]) > 0.95


def test_ultralytics(out):
    pytest.importorskip("ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    (folder,) = export_formats(out, ["yolo"], split=0.4)
    data = check_det_dataset(str(folder / "data.yaml"))
    assert list(data["names"].values()) == list(NAMES)
    counts = {}
    for part in ("train", "val"):
        loaded = YOLODataset(img_path=data[part], data=data, task="segment", augment=False, imgsz=120, rect=False)
        counts[part] = len(loaded.labels)
        for index in range(len(loaded)):
            seed = round(float(loaded[index]["img"][:, 45, 60].float().mean()) / 40)
            for segment, label in zip(loaded.labels[index]["segments"], loaded.labels[index]["cls"][:, 0]):
                mask = fill_polygon((segment * SHAPE[::-1]).ravel().tolist(), SHAPE)
                assert iou(mask, masks(seed)[int(label) + 1]) > 0.9
    assert counts == {"train": 3, "val": 2}

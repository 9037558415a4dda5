"""classes.json: numbers checked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

import vitnp
from vitnp.export.classes import ClassesWriter
from vitnp.export.photograph_record import PhotographRecord, RegionRecord


def photograph(name, confidence, *regions):
    """A photograph with regions (class, typicality, patches)."""
    records = tuple(RegionRecord(label, 0.5, typicality, n_patches) for label, typicality, n_patches in regions)
    return PhotographRecord(name, confidence, records, lambda: np.zeros((1, 1), np.uint8), lambda: None)


# The first photograph has two regions of class 1 and one of class 2, the third has one of class 1, the second none.
PHOTOGRAPHS = [
    photograph("a.jpg", 0.5, (1, 0.2, 10), (1, 0.7, 5), (2, 0.1, 3)),
    photograph("b.jpg", 0.1),
    photograph("c.jpg", 0.75, (1, 0.8, 7)),
]


def test_records_by_hand(tmp_path):
    with ClassesWriter(tmp_path / "classes.json", ["class 1", "class 2", "class 3"]) as classes:
        for record in PHOTOGRAPHS:
            classes.add(record)
    content = json.loads((tmp_path / "classes.json").read_text())
    assert content["software"] == f"vitnp {vitnp.__version__}"
    fields = ("id", "name", "color", "images", "patches", "medoid", "confidence")
    assert [tuple(record[field] for field in fields) for record in content["classes"]] == [
        (1, "class 1", "#800000", 2, 22, "c.jpg", 0.625),
        (2, "class 2", "#008000", 1, 3, "a.jpg", 0.5),
        (3, "class 3", "#808000", 0, 0, None, None),
    ]
    assert all(len(record) == len(fields) for record in content["classes"])


def test_the_first_of_equally_typical_photographs_is_the_medoid(tmp_path):
    classes = ClassesWriter(tmp_path / "classes.json", ["class 1"])
    for name in ("b.jpg", "a.jpg"):
        classes.add(photograph(name, 0.5, (1, -0.25, 1)))
    (record,) = classes.records()
    assert record["medoid"] == "b.jpg"


@pytest.mark.parametrize("label", [0, 3])
def test_unknown_classes_are_refused(tmp_path, label):
    classes = ClassesWriter(tmp_path / "classes.json", ["class 1", "class 2"])
    with pytest.raises(ValueError, match="from 1 to 2"):
        classes.add(photograph("a.jpg", 0.5, (1, 0.5, 1), (label, 0.5, 1)))
    assert [record["images"] for record in classes.records()] == [0, 0]


def test_nothing_is_written_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), ClassesWriter(tmp_path / "classes.json", ["class 1"]):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())

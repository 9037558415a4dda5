"""run.json and classes.json: plain data that JSON holds, and numbers that are right."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest
import scipy
from PIL import __version__ as pillow_version

import vitnp
from vitnp.errors import ImageError
from vitnp.export.run_record import class_records, failure_records, run_record, versions
from vitnp.io.write import write_json


def test_versions_are_those_in_use():
    found = versions()
    assert found["vitnp"] == vitnp.__version__ and found["python"] == platform.python_version()
    assert (found["numpy"], found["scipy"], found["pillow"]) == (np.__version__, scipy.__version__, pillow_version)


def test_absent_packages_are_left_out(monkeypatch):
    monkeypatch.setattr("vitnp.export.run_record._PACKAGES", ("numpy", "no-such-package-of-vitnp"))
    assert set(versions()) == {"vitnp", "python", "numpy"}


def test_failures_are_plain_data():
    assert failure_records([("a.jpg", ImageError("a.jpg: empty")), ("b.jpg", "why")]) == [
        {"photograph": "a.jpg", "error": "a.jpg: empty"},
        {"photograph": "b.jpg", "error": "why"},
    ]


def test_run_record_goes_through_json_whole(tmp_path):
    record = run_record(
        parameters={"size": 320, "levels": "all", "out": None, "clusters": (2, 5)},
        checkpoint="vitnp_tiny",
        checkpoint_sha256="ab" * 32,
        seeds=range(3),
        seconds={"features": 12.34567, "levels": np.float64(0.5)},
        photographs={"found": 5, "done": 4, "failed": 1},
        failures=[("e.jpg", ImageError("e.jpg: this file is empty"))],
    )
    write_json(tmp_path / "run.json", record)
    read = json.loads((tmp_path / "run.json").read_text())
    assert read["parameters"] == {"size": 320, "levels": "all", "out": None, "clusters": [2, 5]}
    assert read["checkpoint"] == {"name": "vitnp_tiny", "sha256": "ab" * 32}
    assert read["seeds"] == [0, 1, 2]
    assert read["seconds"] == {"features": 12.346, "levels": 0.5, "total": 12.846}
    assert read["photographs"] == {"found": 5, "done": 4, "failed": 1}
    assert read["failures"] == [{"photograph": "e.jpg", "error": "e.jpg: this file is empty"}]
    assert read["versions"] == versions()


REGIONS = {
    # Photograph 0 has two regions of class 1 and one of class 2, photograph 2 one of class 1; photograph 1 has none.
    "region_class": [1, 1, 2, 1],
    "region_photograph": [0, 0, 0, 2],
    "region_patches": [10, 5, 3, 7],
}


def test_class_records_by_hand(tmp_path):
    records = class_records(
        ["class 1", "class 2", "class 3"], ["a.jpg", "b.jpg", "c.jpg"], [0.5, 0.1, 0.75], medoids=[2, 0, -1], **REGIONS
    )
    fields = ("id", "name", "color", "images", "patches", "medoid", "confidence")
    assert [tuple(record[field] for field in fields) for record in records] == [
        (1, "class 1", "#800000", 2, 22, "c.jpg", 0.625),
        (2, "class 2", "#008000", 1, 3, "a.jpg", 0.5),
        (3, "class 3", "#808000", 0, 0, None, None),
    ]
    assert all(len(record) == len(fields) for record in records)
    write_json(tmp_path / "classes.json", {"classes": records})
    assert json.loads((tmp_path / "classes.json").read_text())["classes"] == records


def test_no_regions_at_all():
    none = np.empty(0, int)
    regions = {"region_class": none, "region_photograph": none, "region_patches": none}
    (record,) = class_records(["class 1"], [], [], medoids=[0], **regions)
    assert (record["images"], record["patches"], record["medoid"], record["confidence"]) == (0, 0, None, None)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"region_class": [1, 1, 2]}, "each region"),
        ({"region_class": [0, 1, 2, 1]}, "from 1 to 2"),
        ({"region_class": [3, 1, 2, 1]}, "from 1 to 2"),
        ({"region_photograph": [0, 0, 0, 3]}, "there are 3"),
        ({"confidence": [0.5]}, "one confidence"),
        ({"medoids": [0]}, "one medoid"),
    ],
)
def test_data_that_doesnt_fit_is_refused(change, message):
    data = {"names": ["class 1", "class 2"], "photographs": ["a", "b", "c"], "confidence": [1, 1, 1], "medoids": [0, 0]}
    with pytest.raises(ValueError, match=message):
        class_records(**{**data, **REGIONS, **change})

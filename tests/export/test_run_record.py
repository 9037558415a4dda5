"""run.json: plain data that JSON can hold."""

from __future__ import annotations

import json
import platform

import numpy as np
import scipy
from PIL import __version__ as pillow_version

import vitnp
from vitnp.errors import ImageError
from vitnp.export.run_record import failure_records, run_record, versions
from vitnp.io.write import write_json


def test_versions_are_those_in_use():
    found = versions()
    assert found["vitnp"] == vitnp.__version__ and found["python"] == platform.python_version()
    assert (found["numpy"], found["scipy"], found["pillow"]) == (np.__version__, scipy.__version__, pillow_version)


def test_absent_packages_are_left_out(monkeypatch):
    monkeypatch.setattr("vitnp.export.run_record._PACKAGES", ("numpy", "no-such-package-of-vitnp"))
    assert set(versions()) == {"vitnp", "python", "numpy"}


def test_failures_can_be_written_as_json():
    assert failure_records([("a.jpg", ImageError("a.jpg: empty")), ("b.jpg", "why")]) == [
        {"photograph": "a.jpg", "error": "a.jpg: empty"},
        {"photograph": "b.jpg", "error": "why"},
    ]


def test_run_record_is_unchanged_by_json(tmp_path):
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

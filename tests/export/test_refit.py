"""Decisions and a real run: a rerun keeps them, and a refit leaves out what they reject."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scenes import scene

from vitnp.cli import apply, segment
from vitnp.errors import OutputError, UsageError
from vitnp.export.refit import refit
from vitnp.export.results_file import Results

pytestmark = pytest.mark.slow(reason="runs a collection")

DECISIONS = {
    "vitnp": "decisions",
    "version": 1,
    "classes": [{"id": 1, "name": "thing"}],
    "photographs": [{"name": "2.png", "decision": "wrong"}, {"name": "4.png", "decision": "empty"}],
}


@pytest.fixture
def run(tmp_path):
    """Segment six photographs and return the arguments of that."""
    (tmp_path / "in").mkdir()
    for index in range(6):
        Image.fromarray(scene(index, (128, 96))[0]).save(tmp_path / "in" / f"{index}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    arguments = [str(tmp_path / "in"), "--levels", "all", "--classes", "2", "--short-side", "96", "--save", "mask"]
    arguments += ["--quiet", "--polygons", "2", "--out", str(tmp_path / "out")]
    assert segment.main(arguments) == 3
    (tmp_path / "decisions.json").write_text(json.dumps(DECISIONS))
    return arguments


def test_a_rerun_without_changes_keeps_decisions_and_one_with_others_forgets_them(run, tmp_path):
    out = tmp_path / "out"
    assert apply.main([str(tmp_path / "decisions.json"), str(out), "--quiet"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert segment.main(run) == 3
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "broken.png" in (out / "gallery.html").read_text()
    assert segment.main([*run, "--seed", "1"]) == 3
    assert not (out / "results-original.jsonl").exists() and not Results.read(out).decided
    with Image.open(out / "2_labels.png") as labels:
        assert np.asarray(labels).max() < 255


def test_refit_leaves_out_what_was_rejected(run, tmp_path):
    out, new = tmp_path / "out", tmp_path / "new"
    assert apply.main([str(tmp_path / "decisions.json"), str(out), "--refit", str(new), "--quiet"]) == 0
    assert [photograph.name for photograph in Results.read(new).photographs()] == ["0.png", "1.png", "3.png", "5.png"]
    old, fitted = (json.loads((folder / "run.json").read_text())["parameters"] for folder in (out, new))
    changed = {"photographs", "temperatures", "categories"}
    assert {name for name in old if old[name] != fitted[name]} <= changed
    # As if the other photographs had never been there.
    for name in ("2.png", "4.png", "broken.png"):
        (tmp_path / "in" / name).unlink()
    assert segment.main([*run[:-1], str(tmp_path / "fresh"), "--categories", str(old["categories"])]) == 0
    for name in ("annotations.json", "0_labels.png", "5_mask.png"):
        assert (new / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_what_cannot_be_fitted_again_is_refused(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no photograph was rejected there"):
        refit(out, tmp_path / "new")
    assert apply.main([str(tmp_path / "decisions.json"), str(out), "--quiet"]) == 0
    with pytest.raises(UsageError, match="this is the folder of the finished run"):
        refit(out, tmp_path / "in" / ".." / "out")
    record = json.loads((out / "run.json").read_text())
    record["parameters"]["sha256"] = "0" * 64
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"not as in the finished run \(sha256 differ"):
        refit(out, tmp_path / "new")
    (out / "run.json").write_text("{}")
    with pytest.raises(OutputError, match=r"run\.json: this is missing, damaged or of an older version"):
        refit(out, tmp_path / "new")

"""Named pipes under the names of files that vitnp reads: opening one would wait for its writer, for ever."""

from __future__ import annotations

import json
import os

import pytest

from vitnp.checkpoints.checksum import read_sidecar
from vitnp.checkpoints.hub_cache import snapshot_of
from vitnp.errors import OutputError
from vitnp.export.collection_outputs import refuse_foreign_outputs
from vitnp.export.rerun import RerunKeys
from vitnp.export.results_file import Results
from vitnp.export.rewrite import recorded_polygons
from vitnp.features.export import stamp

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", lambda path: RerunKeys.read(path)),
        ("run.json", lambda path: recorded_polygons(path.parent)),
        ("a.safetensors", stamp),
        ("a.npz", stamp),
        ("a.safetensors.sha256", lambda path: read_sidecar(path.with_suffix(""))),
        ("main", lambda path: snapshot_of(path.parent.parent)),
    ],
)
def test_a_pipe_is_no_file(tmp_path, name, read):
    (tmp_path / "refs").mkdir()
    os.mkfifo(tmp_path / "refs" / name)
    assert read(tmp_path / "refs" / name) is None


@pytest.mark.parametrize("name", ["results.jsonl", "gallery.html", "run.json", "contact-sheet.png"])
def test_a_pipe_in_the_place_of_an_output_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(OutputError, match=f"{name}: "):
        refuse_foreign_outputs(tmp_path)
    if name == "results.jsonl":
        with pytest.raises(OutputError, match=f"{name}: this is no file"):
            Results.read(tmp_path)


@pytest.mark.parametrize("polygons", ["x", -1, [], True, {"a": 1}])
def test_a_tolerance_that_no_run_writes_is_not_taken(tmp_path, polygons):
    (tmp_path / "run.json").write_text(json.dumps({"parameters": {"polygons": polygons}}))
    assert recorded_polygons(tmp_path) is None

"""Decisions of a person: what they are checked for, and what becomes of every output of a run."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from vitnp.cli.apply import main
from vitnp.errors import OutputError, UsageError
from vitnp.export.apply import apply_decisions, undo_decisions
from vitnp.export.collection_outputs import CollectionInfo, outputs_of
from vitnp.export.formats.table import export_formats
from vitnp.export.photograph_record import PhotographRecord, RegionRecord, read_preview, read_thumbnail
from vitnp.export.results_file import Results
from vitnp.export.rewrite import rewrite
from vitnp.io.label_png import write_labels
from vitnp.io.write import write_json

NAMES = [
    "a.jpg",
    "b/a.jpg",
    "<script>alert(1)</script>.jpg",
    "e\u0301 \u202e\nx.jpg",
    os.fsdecode(b"caf\xe9.jpg"),
    "f.jpg",
]
HASH = {"vitnp:parameters": "12", "vitnp:photograph": "34"}


def regions(index: int) -> np.ndarray:
    """Region 1 on the left and region 2 on the right."""
    region_map = np.zeros((60, 80), np.uint8)
    region_map[10:40, 5 : 25 + index] = 1
    region_map[20:50, 50:70] = 2
    return region_map


def classes_of(index: int) -> list[int]:
    """Two of the four classes for each photograph."""
    return [index % 4 + 1, (index + 1) % 4 + 1]


@pytest.fixture
def out(tmp_path):
    """Write what a run with four classes leaves."""
    folder = tmp_path / "out"
    folder.mkdir()
    info = CollectionInfo(n_photographs=len(NAMES), n_labels=4, has_classes=True)
    writers = [output.create(folder / output.name, info) for output in outputs_of(has_classes=True)]
    for writer in writers:
        writer.__enter__()
    for index, name in enumerate(NAMES):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (40 * index, 90, 120)).save(path)
        labels = folder / f"{index}_labels.png"
        photograph = PhotographRecord(
            name,
            0.5 + index / 20,
            tuple(RegionRecord(label, 0.7, 0.6, 5) for label in classes_of(index)),
            lambda index=index: regions(index),
            lambda path=path: read_thumbnail(path),
            path,
            {"labels": labels},
            load_preview=lambda path=path: read_preview(path),
        )
        write_labels(labels, photograph.label_map, HASH)
        for writer in writers:
            writer.add(photograph)
    for writer in writers:
        writer.__exit__(None, None, None)
    write_json(folder / "run.json", {"versions": {"vitnp": "0"}, "parameters": {"polygons": None}, "failures": []})
    export_formats(folder, ["coco", "yolo"], split=0.5, seed=3)
    return folder


def decisions(**entries) -> dict:
    return {"vitnp": "decisions", "version": 1, **entries}


EXAMPLE = decisions(
    classes=[{"id": 1, "name": "cat"}, {"id": 3, "into": 2}, {"id": 4, "name": "R\u00e4der"}],
    photographs=[
        {"id": 1, "name": "a.jpg", "decision": "checked"},
        {"id": 2, "name": "b/a.jpg", "decision": "wrong"},
        {"name": NAMES[2], "decision": "empty"},
        {"name": NAMES[3], "decision": "class", "class": 4},
        {"id": 5, "name": "caf\\xe9.jpg", "name_bytes": "Y2Fm6S5qcGc=", "decision": "class", "class": 3},
    ],
)
# New class of each region of the photographs, None for a wrong mask.
EXPECTED = {0: [1, 2], 1: None, 2: [], 3: [3, 3], 4: [2, 2], 5: [2, 2]}


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def tree(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_labels(index: int) -> np.ndarray:
    found = EXPECTED[index]
    if found is None:
        return np.full((60, 80), 255, np.uint8)
    return np.array([0, *(found or [0, 0])], np.uint8)[regions(index)]


def test_every_output_is_written_as_decided(out):
    applied = apply_decisions(EXAMPLE, out)
    assert applied.names == ("cat", "class 2", "R\u00e4der") and applied.formats == ("coco", "yolo")
    assert (applied.wrong, applied.empty, applied.moved) == (1, 1, 2)
    for index in range(len(NAMES)):
        np.testing.assert_array_equal(pixels(out / f"{index}_labels.png"), expected_labels(index))
    kept = [index for index in EXPECTED if EXPECTED[index] is not None]
    for path in (out / "annotations.json", out / "coco" / "annotations" / "instances_default.json"):
        content = json.loads(path.read_text())
        assert [category["name"] for category in content["categories"]] == ["cat", "class 2", "R\u00e4der"]
        assert len(content["images"]) == len(kept)
        found = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
        assert found == [(image, label) for image, index in enumerate(kept, 1) for label in EXPECTED[index]]
    records = json.loads((out / "classes.json").read_text())["classes"]
    assert [(record["name"], record["images"]) for record in records] == [("cat", 1), ("class 2", 3), ("R\u00e4der", 1)]
    results = Results.read(out)
    assert results.names == applied.names and results.decided
    assert [photograph.name for photograph in results.photographs()] == [NAMES[index] for index in kept]
    assert "R\u00e4der" in (out / "yolo" / "data.yaml").read_text(encoding="utf-8")
    assert len(list((out / "yolo" / "images" / "val").iterdir())) == 2  # the split of the earlier export
    assert json.loads((out / "run.json").read_text())["decisions"]["wrong"] == 1
    assert json.loads((out / "decisions.json").read_text())["classes"] == EXAMPLE["classes"]


def test_applying_again_changes_nothing_and_undoing_restores_every_byte(out):
    before = tree(out)
    apply_decisions(EXAMPLE, out)
    once = tree(out)
    apply_decisions(out / "decisions.json", out)
    assert tree(out) == once != before
    apply_decisions(decisions(photographs=[{"name": "f.jpg", "decision": "wrong"}]), out)  # instead, not in addition
    assert [(pixels(out / f"{index}_labels.png") == 255).all() for index in range(6)] == [False] * 5 + [True]
    assert undo_decisions(out).names == ("class 1", "class 2", "class 3", "class 4")
    assert tree(out) == before
    apply_decisions(EXAMPLE, out)
    apply_decisions(decisions(), out)
    assert tree(out) == before


def test_label_images_that_stay_are_not_written_again(out):
    times = [(out / f"{index}_labels.png").stat().st_mtime_ns for index in range(6)]
    apply_decisions(decisions(photographs=[{"name": "f.jpg", "decision": "empty"}]), out)
    same = [(out / f"{index}_labels.png").stat().st_mtime_ns == time for index, time in enumerate(times)]
    assert same == [True] * 5 + [False]
    (out / "5_labels.png").unlink()
    apply_decisions(out / "decisions.json", out)
    assert not pixels(out / "5_labels.png").any()


def test_an_interrupted_application_is_done_again(out, monkeypatch):
    before = tree(out)
    with monkeypatch.context() as patch:
        patch.setattr(
            "vitnp.export.contact_sheet.write_contact_sheet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            apply_decisions(EXAMPLE, out)
    assert (out / "annotations.json").read_bytes() == before[(out / "annotations.json").relative_to(out)]
    apply_decisions(EXAMPLE, out)
    assert Results.read(out).names == ("cat", "class 2", "R\u00e4der")
    undo_decisions(out)
    assert tree(out) == before


def test_gallery_begins_with_the_decisions_and_shows_what_the_run_found(out):
    before = (out / "gallery.html").read_bytes()
    apply_decisions(EXAMPLE, out)
    page = (out / "gallery.html").read_text(encoding="utf-8")
    assert '"into":2' in page and page.count('<li class="card"') == len(NAMES)
    (out / "gallery.html").unlink()  # as after a run of an older version
    apply_decisions(EXAMPLE, out)
    assert (out / "gallery.html").read_text(encoding="utf-8") == page
    undo_decisions(out)
    assert (out / "gallery.html").read_bytes() == before


def test_names_given_to_export_become_decisions(out):
    apply_decisions(EXAMPLE, out)
    rewrite(out, names=["dog", "bird", "wheel"])
    assert Results.read(out).names == ("dog", "bird", "wheel")
    assert (pixels(out / "1_labels.png") == 255).all()
    with pytest.raises(UsageError, match="3 names, one for each class, got 2"):
        rewrite(out, names=["dog", "bird"])


@pytest.mark.parametrize(
    "record, message",
    [
        ([], "holds no decisions"),
        ({"vitnp": "decisions", "version": 7}, "version 7, where this vitnp reads version 1"),
        (decisions(run="0" * 32), "about another run"),
        (decisions(classes=[{"id": 5, "name": "x"}]), "the run has the classes 1 to 4, got 5"),
        (decisions(classes=[{"id": True, "name": "x"}]), "the run has the classes 1 to 4, got True"),
        (decisions(classes=[{"id": 1, "into": 0}]), "the run has the classes 1 to 4, got 0"),
        (decisions(classes=[{"id": 1, "into": 2}, {"id": 2, "into": 1}]), "merged into itself"),
        (decisions(classes=[{"id": 1, "name": "a\nb"}]), "the name of class 1 must be a line of text"),
        (decisions(classes=[{"id": 1, "name": " "}]), "the name of class 1 must be a line of text"),
        (decisions(classes=[{"id": 1, "name": "class 2"}]), 'two classes are named "class 2"'),
        (decisions(classes={"1": "cat"}), '"classes" must be a list of objects'),
        (decisions(photographs=[{"name": "z\x1b.jpg", "decision": "wrong"}]), r"no photograph 'z\\x1b.jpg'"),
        (decisions(photographs=[{"id": 2, "name": "a.jpg", "decision": "wrong"}]), "no photograph 'a.jpg' with id 2"),
        (decisions(photographs=[{"id": 1, "decision": "wrong"}]), "a photograph must have a name"),
        (decisions(photographs=[{"name": "a.jpg", "decision": "bad"}]), "checked, wrong, empty or class, got 'bad'"),
        (decisions(photographs=[{"name": "a.jpg", "decision": "class"}]), "the run has the classes 1 to 4, got None"),
    ],
)
def test_decisions_that_do_not_fit_are_refused_in_one_sentence(out, tmp_path, record, message):
    before = tree(out)
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=message) as error:
        apply_decisions(path, out)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert tree(out) == before


def test_photographs_of_one_name_need_their_number(out):
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join([*lines, lines[1]]))
    with pytest.raises(UsageError, match=r"2 photographs 'a.jpg'"):
        apply_decisions(decisions(photographs=[{"name": "a.jpg", "decision": "wrong"}]), out)
    apply_decisions(decisions(photographs=[{"id": 7, "name": "a.jpg", "decision": "wrong"}]), out)
    assert Results.read(out).n_photographs == 6


def test_files_of_other_programs_are_left_alone(out):
    Image.new("L", (80, 60)).save(out / "2_labels.png")
    before = tree(out)
    with pytest.raises(OutputError, match=r"2_labels.png: this file exists and vitnp did not write it"):
        apply_decisions(EXAMPLE, out)
    assert tree(out) == before


def test_a_photograph_that_is_gone_is_noticed_before_anything_is_written(out):
    (out.parent / "in" / "f.jpg").unlink()
    before = tree(out)
    with pytest.raises(OutputError, match=r"f.jpg: this photograph is gone; .* remove the exports in .*: coco, yolo"):
        apply_decisions(EXAMPLE, out)
    assert tree(out) == before
    assert apply_decisions(decisions(photographs=[{"name": "f.jpg", "decision": "wrong"}]), out).wrong == 1


def test_a_new_run_forgets_what_was_decided_about_the_last(out):
    apply_decisions(EXAMPLE, out)
    info = CollectionInfo(n_photographs=0, n_labels=2, has_classes=True)
    with outputs_of(has_classes=True)[0].create(out / "results.jsonl", info):
        pass
    assert undo_decisions(out).names == ("class 1", "class 2")


def test_command(out, tmp_path, capsys):
    (tmp_path / "decisions.json").write_text(json.dumps(EXAMPLE))
    assert main([str(tmp_path / "decisions.json"), str(out)]) == 0
    message = capsys.readouterr().err
    assert (
        "3 classes, 1 wrong masks left out, 1 without object, 2 of another class" in message and "coco, yolo" in message
    )
    assert main(["--undo", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["class 1", "class 2", "class 3", "class 4"]
    for arguments, message in [
        ([str(out)], "give decisions.json and OUT"),
        (["--undo", "a.json", str(out)], "OUT alone"),
        ([str(tmp_path / "missing.json"), str(out)], "cannot read"),
        ([str(tmp_path / "decisions.json"), str(tmp_path)], "no results.jsonl there"),
        (["--undo", str(out), "--refit", "x"], "leave out --undo"),
    ]:
        with pytest.raises((UsageError, OutputError), match=message):
            main(arguments)

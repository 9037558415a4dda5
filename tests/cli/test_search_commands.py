"""The commands `vitnp similar`, `vitnp duplicates` and `vitnp match`: output, files, exit statuses, wrong usage."""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import random_vit
from PIL import Image
from safetensors.numpy import load_file, save_file

from vitnp import ViT, ViTConfig
from vitnp.cli import shared
from vitnp.errors import OutputError
from vitnp.io.find import find_photographs

COMMANDS = ("similar", "duplicates", "match")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """Write a checkpoint so small that the network takes no time."""
    config = ViTConfig(width=64, depth=2, heads=1, patch=8, grid=(4, 4))
    weights = random_vit.random_weights(config, seed=3, hidden=128, class_position=True, dtype=np.float32)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture
def run(model):
    """Return a function that runs a command with that checkpoint, at a small size."""

    def command(name: str, *arguments) -> int:
        main = importlib.import_module(f"vitnp.cli.{name}").main
        return main([*map(str, arguments), "--model", str(model), "--short-side", "32", "--quiet"])

    return command


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Write photographs of noise: four different ones, and two copies of the first."""
    (tmp_path / "in").mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{seed}.png")
    shutil.copy(tmp_path / "in" / "0.png", tmp_path / "in" / "0 (1).png")
    (tmp_path / "in" / "0b.png").write_bytes((tmp_path / "in" / "0.png").read_bytes() + bytes(9))
    return tmp_path / "in"


def arguments_of(name: str, folder: pathlib.Path) -> list[pathlib.Path | str]:
    if name == "match":
        return [folder / "0.png", folder / "1.png", "--whole"]
    return [folder, "--query", folder / "1.png"] if name == "similar" else [folder, "--threshold", "0.9999"]


def files(folder: pathlib.Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_similar_prints_a_ranking(run, folder, capsys):
    assert run("similar", folder, "--query", folder / "0.png", "-k", 2) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{folder / '0.png'}:"
    assert [line.split(maxsplit=1) for line in rest] == [
        ["1.0000", str(folder / "0 (1).png")],
        ["1.0000", str(folder / "0b.png")],
    ]


def test_similar_prints_a_line_of_json_per_query(run, folder, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    queries = ["--query", folder / "1.png", "--query", tmp_path / "broken.png", "--query", tmp_path / "gone.png"]
    assert run("similar", folder, *queries, "--json") == 3
    out, err = capsys.readouterr()
    lines = sorted(map(json.loads, out.splitlines()), key=lambda line: line["status"])
    assert [line["status"] for line in lines] == ["done", "failed", "failed"]
    assert lines[0]["query"] == str(folder / "1.png") and len(lines[0]["neighbors"]) == 5
    assert {"photograph", "index", "similarity"} <= set(lines[0]["neighbors"][0])
    assert "2 of 3 queries failed" in err and "broken.png" in err and "gone.png" in err


def test_duplicates_prints_groups(run, folder, capsys):
    assert run("duplicates", folder, "--threshold", 0.9999) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder / '0b.png'}:",
        f"  1.0000  {folder / '0 (1).png'}",
        f"  1.0000  {folder / '0.png'}",
    ]
    assert run("duplicates", folder, "--exact", "--json") == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["keep"]["photograph"] == str(folder / "0.png")
    assert [one["photograph"] for one in line["duplicates"]] == [str(folder / "0 (1).png")]


def test_similar_and_duplicates_write_a_sheet_and_json(run, folder, tmp_path):
    for name in ("similar", "duplicates"):
        assert run(name, *arguments_of(name, folder), "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"similar.png", "similar.json", "duplicates.png", "duplicates.json"}
    similar = json.loads((tmp_path / "out" / "similar.json").read_text())
    assert similar["vitnp"] == "similar" and len(similar["queries"][0]["neighbors"]) == 5 and similar["searched"] == 6
    found = json.loads((tmp_path / "out" / "duplicates.json").read_text())
    assert found["threshold"] == 0.9999 and found["groups"][0]["keep"]["width"] == 56
    with Image.open(tmp_path / "out" / "similar.png") as sheet:
        assert sheet.width > 900  # the query and five neighbors
    with Image.open(tmp_path / "out" / "duplicates.png") as sheet:
        assert sheet.width < 900
    # A sheet in the folder of photographs is none of them.
    assert run("similar", *arguments_of("similar", folder), "--out", folder) == 0
    assert len(find_photographs([folder])) == 6


def test_match_keeps_results_of_other_photographs_of_the_same_names(run, folder, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "2.png", tmp_path / "other" / "0.png")
    out = ("--whole", "--out", tmp_path / "out")
    assert run("match", folder / "0.png", folder / "1.png", *out) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for photographs in (
        (tmp_path / "other" / "0.png", folder / "1.png"),
        (folder / "0.png", tmp_path / "other" / "1.png"),
    ):
        shutil.copy(folder / "3.png", tmp_path / "other" / "1.png")
        with pytest.raises(OutputError, match=r"0_1_match.json is about .*--overwrite"):
            run("match", *photographs, *out)
        assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run("match", folder / "0.png", folder / "1.png", *out) == 0  # the same photographs: again
    assert run("match", tmp_path / "other" / "0.png", folder / "1.png", *out, "--overwrite") == 0
    assert json.loads((tmp_path / "out" / "0_1_match.json").read_text())["first"]["photograph"] == str(
        tmp_path / "other" / "0.png"
    )


def test_match_writes_a_picture_and_json(run, folder, tmp_path, capsys):
    assert run("match", folder / "0.png", folder / "0b.png", "--whole", "--matches", 5, "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert line["output"] == str(folder / "0_0b_match.png") and line["mutual"] == 24
    assert all(match["first"] == match["second"] for match in line["matches"]) and len(line["matches"]) == 5
    written = json.loads((folder / "0_0b_match.json").read_text())
    assert written["matches"] == line["matches"] and written["first"] == line["first"]
    with Image.open(folder / "0_0b_match.png") as picture:
        assert picture.size == (56 + 12 + 56, 40)
    assert run("match", folder / "0.png", folder / "0b.png", "--whole", "--out", tmp_path / "out" / "deep") == 0
    assert files(tmp_path / "out") == {"deep/0_0b_match.png", "deep/0_0b_match.json"}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("suffix", [".png", ".json"])
def test_files_of_others_are_replaced_only_with_overwrite(run, folder, tmp_path, capsys, monkeypatch, name, suffix):
    out = tmp_path / "out"
    mine = out / (f"0_1_match{suffix}" if name == "match" else f"{name}{suffix}")
    out.mkdir()
    mine.write_text('{"mine": 1}')
    with monkeypatch.context() as patch, pytest.raises(Exception, match="vitnp did not write it"):
        patch.setattr(ViT, "__call__", lambda *_, **__: pytest.fail("the network ran"))
        run(name, *arguments_of(name, folder), "--out", out)
    assert mine.read_text() == '{"mine": 1}'
    assert run(name, *arguments_of(name, folder), "--out", out, "--overwrite") == 0
    assert run(name, *arguments_of(name, folder), "--out", out) == 0  # its own files


def test_broken_photographs_are_listed_and_the_others_go_on(run, folder, tmp_path, capsys):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:300])
    for name in ("similar", "duplicates"):
        assert run(name, *arguments_of(name, folder)) == 3
        out, err = capsys.readouterr()
        assert err.count("cut.png") == 1 and "0" in out
        assert run(name, tmp_path / "gone", *arguments_of(name, folder)[1:]) == 2
        assert "gone: there is no such file or folder" in capsys.readouterr().err
    assert run("similar", folder / "cut.png", "--query", folder / "0.png") == 2


def test_an_index_is_made_and_reused(run, folder, tmp_path, capsys, monkeypatch):
    index = tmp_path / "photos.index"
    assert run("similar", *arguments_of("similar", folder), "--index", index) == 0
    assert load_file(index)["vectors"].shape == (6, 64)
    first = capsys.readouterr().out
    monkeypatch.setattr(ViT, "__call__", lambda *_, **__: pytest.fail("the network ran"))
    assert run("similar", *arguments_of("similar", folder), "--index", index) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("similar", ["IN"], "--query"),
        ("similar", ["IN", "--query", "IN/0.png", "-k", "0"], "-k must be"),
        ("similar", ["IN", "--query", "IN/0.png", "--of", "sky"], "--of must be"),
        ("similar", ["IN", "--query", "IN/0.png", "--index", "IN/0.png"], "not an index"),
        ("similar", ["IN", "--query", "IN/0.png", "--index", "IN"], "a folder"),
        ("duplicates", ["IN", "--threshold", "95"], "--threshold must be"),
        ("duplicates", ["IN", "--exact", "--threshold", "0.9"], "exact compares bytes"),
        ("duplicates", ["IN", "--exact", "--of", "object"], "exact compares bytes"),
        ("match", ["IN/0.png"], "PHOTO"),
        ("match", ["IN/0.png", "IN/gone.png"], "gone.png"),
        ("match", ["IN/0.png", "IN"], "folder"),
        ("match", ["IN/0.png", "IN/1.png", "--matches", "0"], "--matches must be"),
        ("match", ["IN/0.png", "IN/1.png", "--stride", "7", "--out", "OUT"], "7"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(folder, model, name, arguments, named, monkeypatch, capsys):
    before = files(folder)
    arguments = [text.replace("IN", str(folder)).replace("OUT", str(folder)) for text in arguments]
    monkeypatch.setattr(sys, "argv", ["vitnp", *arguments, "--quiet", "--model", str(model)])
    with pytest.raises(SystemExit) as stop:
        shared.run(importlib.import_module(f"vitnp.cli.{name}").main)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("vitnp: error:") and err.count("\n") == 1 and named in err
    assert files(folder) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        importlib.import_module(f"vitnp.cli.{name}").main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", ["similar", "duplicates"])
def test_interrupt_keeps_the_index_and_writes_nothing_else(folder, model, tmp_path, name, monkeypatch, capsys):
    @contextlib.contextmanager
    def interrupted(*_, **__):
        def progress(steps):
            finished.extend([0] * steps)
            if len(finished) == 3:
                raise KeyboardInterrupt

        finished: list[int] = []
        yield progress

    monkeypatch.setattr(shared, "stage_progress", interrupted)
    out, index = tmp_path / "out", tmp_path / "photos.index"
    options = ["--out", out, "--index", index, "--cache", tmp_path / "cache", "--threads", 1, "--batch", 1]
    arguments = [*arguments_of(name, folder), *options, "--model", model, "--short-side", 32, "--quiet"]
    monkeypatch.setattr(sys, "argv", ["vitnp", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        shared.run(importlib.import_module(f"vitnp.cli.{name}").main)
    assert stop.value.code == 130 and capsys.readouterr().err == "vitnp: interrupted\n"
    assert len(load_file(index)["vectors"]) == 3 and files(out) == set() and not list(tmp_path.rglob("*.part"))

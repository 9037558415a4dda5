"""The command `vitnp features`: files, reruns, cache, broken photographs, wrong options, Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import random_vit
from PIL import Image
from safetensors.numpy import load_file, save_file

from vitnp import ViT, ViTConfig, load_vit, read_image
from vitnp.cli.features import main
from vitnp.features.extract import extract
from vitnp.io import write
from vitnp.io.decode import file_hash


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
    """Return the command with that checkpoint, at a small size."""
    return lambda *arguments: main([*map(str, arguments), "--model", str(model), "--short-side", "32", "--quiet"])


def photograph(path: pathlib.Path, seed: int = 0, size: tuple[int, int] = (56, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def files(folder: pathlib.Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """Return arrays and metadata of a file in either format, read without vitnp."""
    if path.suffix == ".npz":
        with np.load(path) as content:
            arrays = dict(content)
        return arrays, json.loads(str(arrays.pop("metadata")))
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        texts = file.metadata()
    metadata = {}
    for name, value in texts.items():
        try:
            metadata[name] = json.loads(value)
        except json.JSONDecodeError:
            metadata[name] = value
    return load_file(path), metadata


@pytest.mark.parametrize("form", ["npz", "safetensors"])
@pytest.mark.parametrize("options", [{}, {"facet": "value", "layer": 0, "stride": 4, "dtype": "float32"}])
def test_files_hold_what_extract_gives(run, model, tmp_path, form, options):
    photograph(tmp_path / "in" / "x" / "a.png")
    photograph(tmp_path / "in" / "b.png", seed=1, size=(40, 60))
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--format", form, *arguments) == 0
    assert files(tmp_path / "out") == {f"x/a.{form}", f"b.{form}"}
    precision = options.pop("dtype", "float16")
    vit = load_vit(model)
    for name in ("x/a", "b"):
        rgb = read_image(tmp_path / "in" / f"{name}.png")
        expected = extract(rgb, vit, short_side=32, **options)
        arrays, metadata = read(tmp_path / "out" / f"{name}.{form}")
        assert set(arrays) == {"keys", "attention", "cls"}
        assert np.array_equal(arrays["keys"], expected.keys.reshape(*expected.grid, 64).astype(precision))
        assert arrays["keys"].dtype == precision
        assert np.array_equal(arrays["attention"], expected.attention.reshape(expected.grid))
        assert arrays["cls"].shape == (64,) and arrays["cls"].dtype == np.float32
        assert (
            metadata["sha256"] == vit.sha256
            and metadata["size"] == 32
            and metadata["facet"] == options.get("facet", "key")
        )
        assert metadata["layer"] == options.get("layer", 1) and metadata["stride"] == options.get("stride", 8)
        assert metadata["photograph_size"] == list(rgb.shape[:2]) and metadata["pixels"] == list(expected.pixels)
        assert (
            metadata["model"] == vit.name and metadata["version"] and metadata["pos_embed"] and metadata["patch"] == 8
        )


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_rerun_does_only_what_changed(run, tmp_path, capsys, form):
    for seed in range(3):
        photograph(tmp_path / "in" / f"{seed}.png", seed)

    def statuses(*more) -> list[str]:
        capsys.readouterr()
        assert run(tmp_path / "in", "--out", tmp_path / "out", "--format", form, "--json", *more) == 0
        lines = sorted(map(json.loads, capsys.readouterr().out.splitlines()), key=lambda line: line["photograph"])
        return [line["status"] for line in lines]

    assert statuses() == ["done"] * 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert statuses() == ["skipped"] * 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    photograph(tmp_path / "in" / "1.png", seed=7)
    assert statuses() == ["skipped", "done", "skipped"]
    (tmp_path / "out" / f"2.{form}").unlink()
    assert statuses() == ["skipped", "skipped", "done"]
    assert statuses("--facet", "query") == ["done"] * 3
    assert statuses("--facet", "query", "--overwrite") == ["done"] * 3


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_foreign_files_are_replaced_only_with_overwrite(run, tmp_path, capsys, form):
    photograph(tmp_path / "a.png")
    mine = tmp_path / f"a.{form}"
    mine.write_text("mine")
    assert run(tmp_path / "a.png", "--format", form) == 2
    assert mine.name in capsys.readouterr().err and mine.read_text() == "mine"
    assert run(tmp_path / "a.png", "--format", form, "--overwrite") == 0
    assert read(mine)[0]["keys"].shape == (4, 6, 64)


def test_a_place_that_takes_no_file_is_found_before_the_network_runs(run, tmp_path, capsys, monkeypatch):
    for name in ("a.png", "b.png"):
        photograph(tmp_path / "in" / name)
    (tmp_path / "full").mkdir()

    def disk_full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "check_writable", disk_full)
    monkeypatch.setattr(ViT, "__call__", lambda *arguments, **options: pytest.fail("the network ran"))
    assert run(tmp_path / "in", "--out", tmp_path / "full") == 2
    assert capsys.readouterr().err.count("the disk is full; free some space or write elsewhere (2 times)") == 1
    assert not files(tmp_path / "full")


def test_names_that_collide_keep_their_extension(run, tmp_path):
    photograph(tmp_path / "in" / "a.png")
    photograph(tmp_path / "in" / "a.bmp", seed=1)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"a.png.npz", "a.bmp.npz"}


def test_broken_files_are_listed_and_the_others_go_on(run, tmp_path, capsys):
    photograph(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "good.png").read_bytes()[:500])
    (tmp_path / "in" / "empty.jpg").touch()
    assert run(tmp_path / "in", tmp_path / "gone.png", "--out", tmp_path / "out", "--json") == 3
    out, err = capsys.readouterr()
    assert "3 of 4 failed" in err and all(err.count(name) == 1 for name in ("cut.png", "empty.jpg", "gone.png"))
    assert sorted(json.loads(line)["status"] for line in out.splitlines()) == ["done", "failed", "failed", "failed"]
    assert files(tmp_path / "out") == {"good.npz"}
    assert run(tmp_path / "in" / "cut.png") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="libtiff is linked statically")
def test_a_damaged_tiff_is_one_line(run, tmp_path, capfd):
    photograph(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        image.save(tmp_path / "b.tif", compression="tiff_adobe_deflate")
    data = bytearray((tmp_path / "b.tif").read_bytes())
    data[200:220] = bytes(20)
    (tmp_path / "b.tif").write_bytes(data)
    assert run(tmp_path / "b.tif", "--out", tmp_path / "out") == 2
    # The library's log goes to standard error only from a command that is run as a process.
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("vitnp: error: ") and "b.tif: the TIFF is truncated, damaged" in line


def test_same_files_with_and_without_a_cache_and_for_any_threads(run, tmp_path):
    for seed in range(9):
        photograph(tmp_path / "in" / f"{seed}.png", seed, size=(40 + 8 * (seed % 3), 40))
    cache = tmp_path / "cache"
    assert run(tmp_path / "in", "--out", tmp_path / "plain", "--threads", 1) == 0
    assert run(tmp_path / "in", "--out", tmp_path / "cached", "--cache", cache, "--threads", 3) == 0
    shards = contents(cache)
    assert len(shards) == 2  # a shard and the record of its features
    assert run(tmp_path / "in", "--out", tmp_path / "again", "--cache", cache) == 0
    assert contents(tmp_path / "plain") == contents(tmp_path / "cached") == contents(tmp_path / "again")
    assert contents(cache) == shards


def test_prune_removes_all_other_photographs(run, tmp_path, capsys):
    for seed in range(4):
        photograph(tmp_path / "in" / f"{seed}.png", seed)
    cache = tmp_path / "cache"
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--cache", cache) == 0
    before = files(cache)
    assert run(tmp_path / "in", tmp_path / "gone", "--cache", cache, "--prune") == 2
    assert files(cache) == before and "nothing was pruned" in capsys.readouterr().err
    (tmp_path / "in" / "notes.png").touch()
    assert main([str(tmp_path / "in"), "--cache", str(cache), "--prune"]) == 0
    assert files(cache) == before and "0.0 MB" in capsys.readouterr().err
    for seed in (0, 2):
        (tmp_path / "in" / f"{seed}.png").rename(tmp_path / f"{seed}.png")
    assert run(tmp_path / "in", "--cache", cache, "--prune") == 0
    (shard,) = cache.rglob("*.safetensors")
    assert len(load_file(shard)["cls"]) == 2
    from safetensors import safe_open

    with safe_open(shard, framework="numpy") as file:
        stored = {row[0] for row in json.loads(file.metadata()["photographs"])}
    assert stored == {file_hash(tmp_path / "in" / f"{seed}.png") for seed in (1, 3)}
    assert files(tmp_path / "out") == {f"{seed}.npz" for seed in range(4)}


def test_damaged_cache_is_reported_and_repaired(run, tmp_path, capsys):
    photograph(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--cache", tmp_path / "cache") == 0
    expected = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").unlink()
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-3])
    assert run(tmp_path / "a.png", "--cache", tmp_path / "cache") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "damaged" in err
    assert (tmp_path / "a.npz").read_bytes() == expected


def test_token_cap_gives_one_line_of_notice(model, tmp_path, capsys):
    photograph(tmp_path / "a.png", size=(400, 20))
    assert main([str(tmp_path / "a.png"), "--model", str(model), "--max-tokens", "30"]) == 0
    assert capsys.readouterr().err.count("--max-tokens") == 1
    assert read(tmp_path / "a.npz")[1]["capped"] is True


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--format", "xml"], "xml"),
        (["--dtype", "float8"], "float8"),
        (["--facet", "poster"], "poster"),
        (["--layer", "77"], "77"),
        (["--stride", "7"], "7"),
        (["--short-side", "0"], "0"),
        (["--prune"], "--cache"),
        (["--bogus"], "--bogus"),
        (["--model", "no_such_model"], "no_such_model"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(tmp_path, arguments, named):
    photograph(tmp_path / "a.png")
    run = subprocess.run(
        [sys.executable, "-m", "vitnp.features", str(tmp_path / "a.png"), "--quiet", *arguments],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("vitnp: error:") and run.stderr.count("\n") == 1 and named in run.stderr
    assert files(tmp_path) == {"a.png"}


def test_cache_that_is_a_file(run, tmp_path):
    photograph(tmp_path / "a.png")
    (tmp_path / "cache").write_text("a file")
    command = [
        sys.executable,
        "-m",
        "vitnp.features",
        str(tmp_path / "a.png"),
        "--quiet",
        "--cache",
        str(tmp_path / "cache"),
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "cache" in run.stderr
    assert files(tmp_path) == {"a.png", "cache"}


def test_help_fits_a_screen():
    text = subprocess.run(
        [sys.executable, "-m", "vitnp.features", "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={"COLUMNS": "80"},
    ).stdout
    lines = text.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80


@pytest.mark.slow(reason="interrupts a running command")
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_interrupt_leaves_whole_files_and_a_whole_cache(tmp_path):
    for index in range(60):
        photograph(tmp_path / "in" / f"{index:02}.bmp", seed=index, size=(320, 240))
    command = [sys.executable, "-m", "vitnp.features", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    command += ["--cache", str(tmp_path / "cache"), "--threads", "2", "--short-side", "160"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and "interrupted" in err
    done = files(tmp_path / "out")
    assert 0 < len(done) < 60 and all(name.endswith(".npz") for name in done)
    for name in done:
        assert read(tmp_path / "out" / name)[0]["keys"].ndim == 3
    # The cache holds at least the photographs whose files are written.
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    assert len(load_file(shard)["cls"]) >= len(done)
    assert not list(tmp_path.rglob("*.part"))

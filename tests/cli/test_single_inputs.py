"""``vitnp segment`` for one photograph: standard input, one file, addresses of the web; and ``vitnp watch``."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitnp
from vitnp.cli.segment import main
from vitnp.errors import ImageError, OutputError, UsageError

PHOTOGRAPH = Path(__file__).parent.parent / "photographs" / "coffee.jpg"
QUICK = ("--short-side", "64", "--quiet")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder with one photograph."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTOGRAPH, "a.jpg")
    return tmp_path


@pytest.fixture
def piped(monkeypatch):
    """Return a function that puts bytes on standard input."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_standard_input_is_a_photograph(here, piped, capsys):
    piped(PHOTOGRAPH.read_bytes())
    assert main(["-", *QUICK, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["photograph"] == "-" and line["outputs"] == {"mask": "stdin_mask.png", "overlay": "stdin_overlay.png"}
    assert files(here) == {"a.jpg", "stdin_mask.png", "stdin_overlay.png"}
    assert main(["a.jpg", *QUICK]) == 0
    assert np.array_equal(np.asarray(Image.open("stdin_mask.png")), np.asarray(Image.open("a_mask.png")))


def test_standard_input_beside_files(here, piped):
    piped(PHOTOGRAPH.read_bytes())
    assert main(["a.jpg", "-", *QUICK, "--out", "o", "--save", "mask"]) == 0
    assert files(here / "o") == {"a_mask.png", "stdin_mask.png"}


def test_an_empty_standard_input_is_said(here, piped):
    piped(b"")
    with pytest.raises(ImageError, match="standard input brings no photograph"):
        main(["-", *QUICK])
    assert files(here) == {"a.jpg"}


def test_a_broken_standard_input_has_the_name_that_was_given(here, piped, capsys):
    piped(PHOTOGRAPH.read_bytes()[:300])
    assert main(["-", *QUICK, "--json"]) == 2
    captured = capsys.readouterr()
    line = json.loads(captured.out)
    assert line["photograph"] == "-" and line["error"].startswith("standard input: the JPEG is truncated")
    assert captured.err == f"vitnp: error: {line['error']}\n"


def test_standard_input_that_cannot_be_read_or_kept_is_one_sentence(here, piped, monkeypatch):
    piped(PHOTOGRAPH.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("vitnp.cli.standard_input._MAX_BYTES", 1000)
        patch.setattr("vitnp.cli.standard_input._READ_BYTES", 500)
        with pytest.raises(ImageError, match="standard input brings more than"):
            main(["-", *QUICK])
    piped(PHOTOGRAPH.read_bytes())
    sys.stdin.buffer.close()
    with pytest.raises(ImageError, match="standard input can't be read"):
        main(["-", *QUICK])
    piped(PHOTOGRAPH.read_bytes())
    monkeypatch.setattr(tempfile, "tempdir", str(here / "gone"))
    with pytest.raises(OutputError, match="can't keep standard input in .*gone: No such file"):
        main(["-", *QUICK])
    assert files(here) == {"a.jpg"}


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_what_a_killed_run_kept_of_standard_input_is_removed(here, piped, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    (here / "vitnp-stdin-killed").mkdir()
    for name in ("in-use", "stdin"):
        (here / "vitnp-stdin-killed" / name).write_bytes(b"")
    piped(PHOTOGRAPH.read_bytes())
    assert main(["-", *QUICK, "--out", "m.png"]) == 0
    assert files(here) == {"a.jpg", "m.png"}


@pytest.mark.parametrize("url", ["https://example.org/a.jpg", "HTTP://example.org/a.jpg?x=1", "s3://bucket/a.jpg"])
def test_addresses_are_refused_with_the_line_that_brings_them(here, url, capsys):
    assert main([url, *QUICK]) == 2
    assert f"curl -LO '{url}'" in capsys.readouterr().err
    assert main([url, "a.jpg", *QUICK]) == 3 and "a_mask.png" in files(here)
    with pytest.raises(ImageError, match="fetches nothing"):
        vitnp.read_image(url)


@pytest.mark.parametrize(
    "arguments, kind", [([], "mask"), (["--save", "overlay"], "overlay"), (["--save", "cutout"], "cutout")]
)
def test_out_may_be_one_file(here, arguments, kind):
    assert main(["a.jpg", "--out", "x/one.png", *arguments, *QUICK]) == 0
    assert files(here) == {"a.jpg", "x/one.png"}
    assert main(["a.jpg", "--out", "many", "--save", kind, *QUICK]) == 0
    assert np.array_equal(np.asarray(Image.open("x/one.png")), np.asarray(Image.open(f"many/a_{kind}.png")))


def test_out_of_other_formats(here):
    assert main(["a.jpg", "--out", "one.npz", *QUICK]) == 0
    assert np.load("one.npz")["mask"].shape == (400, 600)
    assert main(["a.jpg", "--out", "score.npy", "--save", "score", *QUICK]) == 0
    assert np.load("score.npy").ndim == 2
    Path("folder.png").mkdir()
    assert main(["a.jpg", "--out", "folder.png", "--save", "mask", *QUICK]) == 0  # a folder, whatever its name
    assert files(here / "folder.png") == {"a_mask.png"}


def test_one_file_is_not_made_twice_and_replaces_nothing_foreign(here, capsys):
    assert main(["a.jpg", "--out", "one.png", "--short-side", "64"]) == 0
    capsys.readouterr()
    assert main(["a.jpg", "--out", "one.png", "--short-side", "64"]) == 0
    assert "done before -> one.png" in capsys.readouterr().out
    Image.new("RGB", (9, 9)).save("mine.png")
    before = Path("mine.png").read_bytes()
    assert main(["a.jpg", "--out", "mine.png", *QUICK]) == 2
    assert Path("mine.png").read_bytes() == before
    assert main(["a.jpg", "--out", "a.jpg.png", *QUICK]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.jpg", "b.jpg", "--out", "one.png"], "one file, for one photograph by itself; name a folder for several"),
        (["a.jpg", "--out", "one.png", "--classes", "2"], "one photograph by itself"),
        (["a.jpg", "--out", "one.png", "--save", "mask,cutout"], "makes .png and .png; name one output"),
        (["a.jpg", "--out", "one.png", "--save", "keys"], "--save keys makes .npy"),
    ],
)
def test_one_file_holds_one_output_of_one_photograph(here, arguments, message):
    shutil.copy("a.jpg", "b.jpg")
    with pytest.raises(UsageError, match=message):
        main([*arguments, *QUICK])
    assert files(here) == {"a.jpg", "b.jpg"}


def test_a_line_names_the_folder_once(here, capsys):
    assert main(["a.jpg", "--out", "o/p", "--short-side", "64"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("-> o/p/a_mask.png, a_overlay.png")


# --- vitnp watch -----------------------------------------------------------------------------------------------------


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow(reason="waits for files to settle")
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_watch_segments_what_is_there_and_what_arrives(tmp_path):
    pytest.importorskip("watchdog", reason="watchdog is not installed")
    inbox, out = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    shutil.copy(PHOTOGRAPH, inbox / "first.jpg")
    command = ["-m", "vitnp", "watch", inbox, "--out", out, "--save", "mask", "--short-side", "64", "--json"]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for((out / "first_mask.png").is_file, process)
        data = PHOTOGRAPH.read_bytes()
        with open(inbox / "slow.jpg", "wb") as file:  # arrives in parts
            file.write(data[:5000])
            file.flush()
            time.sleep(0.3)
            file.write(data[5000:])
        (inbox / "notes.txt").write_text("no photograph")
        (inbox / "broken.jpg").write_bytes(b"\xff\xd8\xff" + b"x" * 99)
        (inbox / "sub").mkdir()
        shutil.copy(PHOTOGRAPH, inbox / ".part")
        os.rename(inbox / ".part", inbox / "moved.jpg")
        shutil.copy(PHOTOGRAPH, inbox / "first.jpeg")  # must not replace the mask of first.jpg
        expected = ("slow_mask.png", "moved_mask.png", "first.jpeg_mask.png")
        wait_for(lambda: all((out / name).is_file() for name in expected), process)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    statuses = {Path(line["photograph"]).name: line["status"] for line in map(json.loads, output.splitlines())}
    done = dict.fromkeys(("first.jpg", "first.jpeg", "slow.jpg", "moved.jpg"), "done")
    assert statuses == {**done, "broken.jpg": "failed"}
    assert files(out) == {"first_mask.png", *expected}


def test_watch_names_its_extra(tmp_path, monkeypatch):
    from vitnp.cli.watch import main as watch

    monkeypatch.setitem(sys.modules, "watchdog", None)
    monkeypatch.setitem(sys.modules, "watchdog.observers", None)
    with pytest.raises(UsageError, match=r"pip install 'vitnp\[watch\]'"):
        watch([str(tmp_path)])
    with pytest.raises(UsageError, match="not a folder"):
        watch([str(tmp_path / "nothing")])

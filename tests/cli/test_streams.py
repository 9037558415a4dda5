"""Standard streams of any kind never stop the work: narrow encodings, closed, full, and no longer read."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vitnp.cli import shared, streams

posix = pytest.mark.skipif(os.name != "posix", reason="redirections of a POSIX shell")

# Commands that print one line each for two outcomes, by the functions that every command uses.
LINES = """
import pathlib, sys
from vitnp.cli import shared, streams

def main(argv):
    for name in sys.argv[1:]:
        shared.say(name)
        streams.print_line(name)
        pathlib.Path("work").open("a").write("done ")
    return 0

shared.run(main)
"""


def run(folder, *names: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the lines above for names, with redirections of a shell."""
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", LINES, *map(os.fsencode, names)]
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, cwd=folder, capture_output=True, env={**os.environ, "PYTHONPATH": path, **environment}
    )


@posix
@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "猫 caf\\xe9 \\x1b[2J\n".encode()),
        ("cp1252", b"\\u732b caf\\xe9 \\x1b[2J\n"),
        ("ascii:strict", b"\\u732b caf\\xe9 \\x1b[2J\n"),
    ],
)
def test_names_are_printed_in_any_encoding(tmp_path, encoding, expected):
    done = run(tmp_path, "猫 caf\udce9 \x1b[2J", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"vitnp: " + expected)


@posix
@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_and_full_errors_change_nothing(tmp_path, shell):
    if "full" in shell and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    done = run(tmp_path, "a", "b", shell=shell)
    assert done.returncode == 0 and (tmp_path / "work").read_text() == "done done "
    assert done.stdout == (b"a\nb\n" if shell.startswith("2>") else b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_output_is_one_sentence_and_status_3(tmp_path):
    done = run(tmp_path, "a", "b", shell=">/dev/full")
    assert done.returncode == shared.EXIT_SOME_FAILED and (tmp_path / "work").read_text() == "done done "
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if "error" in line] == [
        "vitnp: error: standard output can't be written (No space left on device), so its lines are lost and the work "
        "goes on; redirect it elsewhere"
    ]


@posix
def test_a_reader_that_has_gone_is_no_error(tmp_path):
    done = run(tmp_path, *map(str, range(50)), shell="2>errors | true; sleep 0.1; wait")
    assert done.stdout == b"" and "rror" not in (tmp_path / "errors").read_text().replace("errors", "")
    assert (tmp_path / "work").read_text().count("done") == 50


@posix
def test_files_never_get_the_number_of_a_closed_stream(tmp_path):
    code = "import os; from vitnp.cli import streams as s; s.open_missing(); open('n', 'w').write(str(os.open('.', 0)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path, env=environment)
    assert int((tmp_path / "n").read_text()) > 2


def test_a_stream_closed_by_python_is_given_up(monkeypatch, capsys):
    stream = open(os.devnull, "w")  # noqa: SIM115 - closed below
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(streams, "_output_errors", [])
    streams.print_line("a")
    streams.print_line("b")
    assert streams.output_lost() and capsys.readouterr().err.count("\n") == 1
    assert not streams.is_terminal(stream) and not streams.is_terminal(None)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_names_that_are_not_unicode_keep_their_bytes_in_json(tmp_path, capsys):
    from vitnp.cli.segment import main

    os.mkdir(os.fsencode(tmp_path) + b"/p")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8))
    exact = os.fsencode(tmp_path) + b"/p/caf\xe9\n.png"
    picture.save(os.fsdecode(exact))
    arguments = [str(tmp_path / "p"), "--out", str(tmp_path / "out"), "--short-side", "32", "--quiet"]
    assert main([*arguments, "--json"]) == 0
    text = capsys.readouterr().out
    line = json.loads(text)
    assert text.isascii() and text.count("\n") == 1
    assert line["photograph"] == f"{tmp_path}/p/caf\\xe9\n.png" and base64.b64decode(line["photograph_bytes"]) == exact
    masks = base64.b64decode(line["outputs_bytes"]["mask"])
    assert masks == os.fsencode(tmp_path) + b"/out/caf\xe9\n_mask.png" and os.path.exists(masks)
    assert main([*arguments[:-1], "--overwrite"]) == 0
    assert f"{tmp_path}/p/caf\\xe9\\n.png: foreground" in capsys.readouterr().out

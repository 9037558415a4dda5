"""Unfinished files: those of killed processes are removed, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vitnp.errors import OutputError
from vitnp.io import part_files, write

posix = pytest.mark.skipif(os.name != "posix", reason="locks and signals as POSIX has them")

# Holds two unfinished files open until it is killed.
WRITER = """
import sys
from vitnp.io.write import replacing
with replacing(sys.argv[1] + "/a.png") as a, replacing(sys.argv[1] + "/b.png") as b:
    a.write(b"half"); a.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


@posix
def test_unfinished_files_of_a_killed_process_are_removed_and_those_of_a_living_one_kept(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        assert writer.stdout.readline() == b"ready\n"
        (tmp_path / "mine.part").write_text("of another program")
        (tmp_path / ".vitnp-notes.part").write_text("of the user")
        os.mkfifo(tmp_path / f".vitnp-{'0' * 16}.part")
        (tmp_path / f".vitnp-{'1' * 16}.part").symlink_to(tmp_path / "mine.part")
        before = set(os.listdir(tmp_path))
        part_files.remove_abandoned(tmp_path)
        assert set(os.listdir(tmp_path)) == before and len(before) == 6
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    part_files.remove_abandoned(tmp_path)
    kept = {"mine.part", ".vitnp-notes.part", f".vitnp-{'0' * 16}.part", f".vitnp-{'1' * 16}.part"}
    assert set(os.listdir(tmp_path)) == kept


@posix
def test_a_file_taken_for_abandoned_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    import fcntl

    flock, taken = fcntl.flock, []

    def late(descriptor, operation):
        if not taken:
            taken.append(True)
            part_files.remove_abandoned(tmp_path)  # of another process, in the moment between open and lock
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write.write_text(tmp_path / "a.txt", "all of it")
    assert taken and os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "all of it"


@posix
def test_file_systems_without_locks(tmp_path, monkeypatch):
    import fcntl

    def no_locks(*_):
        raise OSError("not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / f".vitnp-{'0' * 16}.part").write_text("whose, nobody knows")
    part_files.remove_abandoned(tmp_path)
    write.write_text(tmp_path / "a.txt", "all of it")
    assert sorted(os.listdir(tmp_path)) == [f".vitnp-{'0' * 16}.part", "a.txt"]


@posix
def test_folders_being_filled_are_kept_and_others_removed(tmp_path):
    with part_files.part_folder(tmp_path) as folder:
        (folder / "file").write_text("")
        part_files.remove_abandoned(tmp_path)
        assert (folder / "file").exists()
        os.rename(folder, tmp_path / "done")
    with part_files.part_folder(tmp_path) as folder:
        (folder / "file").write_text("")
    assert os.listdir(tmp_path) == ["done"] and os.listdir(tmp_path / "done") == ["file"]
    os.rename(tmp_path / "done", tmp_path / f".vitnp-{'0' * 16}.part")
    part_files.remove_abandoned(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_missing_folder_has_no_unfinished_files(tmp_path):
    part_files.remove_abandoned(tmp_path / "none")


@posix
def test_a_run_removes_what_a_killed_one_left(tmp_path):
    from vitnp.cli import features, segment

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for command in (segment, features):
        (tmp_path / f".vitnp-{'0' * 16}.part").write_text("half")
        assert command.main([str(tmp_path / "a.png"), "--short-side", "32", "--quiet"]) == 0
        assert not list(tmp_path.glob(".*"))


@posix
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_files_written_together_appear_all_or_none(tmp_path, error):
    (tmp_path / "a.txt").write_text("before")

    def write_both(fails: bool) -> None:
        with write.writing_together(tmp_path):
            write.write_text(tmp_path / "a.txt", "after")
            part_files.remove_abandoned(tmp_path)  # of a run beside this one
            assert (tmp_path / "a.txt").read_text() == "before"
            if fails:
                raise error
            write.write_text(tmp_path / "b.txt", "after")

    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_both(fails=True)
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"
    write_both(fails=False)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"] and (tmp_path / "a.txt").read_text() == "after"


def test_outputs_of_a_photograph_are_all_or_none(tmp_path, monkeypatch):
    from vitnp import outputs, segment_image

    result = segment_image(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8), short_side=32)

    def full(*_):
        raise OutputError("can't write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setitem(outputs.WRITERS, "soft", outputs.OutputWriter("_soft.png", full))
        with pytest.raises(OutputError, match="the disk is full"):
            result.save(tmp_path / "a", ["mask", "soft"])
    assert not os.listdir(tmp_path)


def test_prepare_folder(tmp_path, monkeypatch):
    write.prepare_folder(tmp_path / "a" / "b")
    assert not os.listdir(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file of this name is in the way"):
        write.prepare_folder(tmp_path / "file")

    class Full:
        def __init__(self, path, mode):
            self.file, self.name = open(path, mode), path  # noqa: SIM115 - closed by __exit__

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def fileno(self):
            return self.file.fileno()

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(part_files, "open", Full, raising=False)
    with pytest.raises(OutputError, match="the disk is full"):
        write.prepare_folder(tmp_path / "a")
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.skipif(os.name != "posix", reason="names of 255 bytes")
@pytest.mark.parametrize("which", ["mask,overlay", "mask,npz,score,overlay"])
def test_a_name_too_long_for_one_output_leaves_none(tmp_path, capsys, which):
    from vitnp.cli.segment import main

    name = "a" * 244  # with _mask.png 253 bytes, with _overlay.png 256
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "in").mkdir()
    for photograph in (name, "b"):
        picture.save(tmp_path / "in" / f"{photograph}.png")
    out = tmp_path / "out"
    assert main([str(tmp_path / "in"), "--out", str(out), "--short-side", "32", "--quiet", "--save", which]) == 3
    assert {path[0] for path in os.listdir(out)} == {"b"} and len(os.listdir(out)) == len(which.split(","))
    err = capsys.readouterr().err
    assert "1 of 2 failed" in err and "_overlay.png: the name is too long; choose a shorter one" in err

"""Finding photographs in files and folders."""

from __future__ import annotations

import errno
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitnp.errors import ImageError
from vitnp.io import find, write


@pytest.fixture
def album(tmp_path):
    """A folder with photographs, other files, hidden files and subfolders."""
    folder = tmp_path / "album"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("b.jpg", "a.JPG", "sub/c.webp", "sub/deep/d.TIFF", ".e.jpg", ".hidden/f.jpg", "notes.txt", "g.npy"):
        (folder / name).write_bytes(b"anything")
    write.write_png(folder / "a_mask.png", np.zeros((4, 4), np.uint8))
    Image.new("L", (4, 4)).save(folder / "own.png")
    return folder


def relatives(found):
    return [photograph.relative.as_posix() for photograph in found]


def test_folders_are_searched_in_order(album):
    expected = ["a.JPG", "b.jpg", "own.png", "sub/c.webp", "sub/deep/d.TIFF"]
    found = find.find_photographs([album])
    assert relatives(found) == expected
    assert [photograph.path for photograph in found] == [album / name for name in expected]


def test_files_are_listed_once_whatever_their_extension(album, monkeypatch):
    monkeypatch.chdir(album)
    found = find.find_photographs(["notes.txt", album / "b.jpg", "./b.jpg", album / "sub" / ".." / "b.jpg", album])
    assert relatives(found) == ["notes.txt", "b.jpg", "a.JPG", "own.png", "sub/c.webp", "sub/deep/d.TIFF"]


def test_several_folders_prefix_their_names(album, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.jpg").write_bytes(b"x")
    assert relatives(find.find_photographs([album / "sub", tmp_path / "other"])) == [
        "sub/c.webp",
        "sub/deep/d.TIFF",
        "other/b.jpg",
    ]


def test_cyclic_links(album):
    (album / "sub" / "deep" / "up").symlink_to(album)
    (album / "again").symlink_to(album / "sub")
    (album / "broken.jpg").symlink_to(album / "nowhere.jpg")
    (album / "link.jpg").symlink_to(album / "b.jpg")
    (album / "round").symlink_to(album / "round")
    failures: list[ImageError] = []
    found = find.find_photographs([album], failures=failures)
    assert relatives(found) == ["a.JPG", "again/c.webp", "again/deep/d.TIFF", "b.jpg", "link.jpg", "own.png"]
    assert [str(failure) for failure in failures] == [
        f"{album / 'broken.jpg'}: this link leads to no file; mend or remove it"
    ]


def test_paths_without_photographs_are_an_error(album, tmp_path):
    (tmp_path / "none").mkdir()
    cases = [
        (album / "a_mask.png", "vitnp wrote this"),
        (tmp_path / "none", "holds no photographs"),
        (album / "missing.jpg", "no such file"),
        (album / "b.jpg" / "x", "no such file"),
    ]
    for path, words in cases:
        with pytest.raises(ImageError, match=words) as error:
            find.find_photographs([path])
        assert str(path) in str(error.value)
    failures: list[ImageError] = []
    found = find.find_photographs([*(path for path, _ in cases), album / "b.jpg"], failures=failures)
    assert relatives(found) == ["b.jpg"]
    assert len(failures) == len(cases)


def test_errors_know_their_path(tmp_path):
    names = ["gone: really.jpg", "empty: folder"]
    (tmp_path / names[1]).mkdir()
    given = [tmp_path / name for name in names] + ["https://example.org/a.jpg"]
    failures = []
    assert find.find_photographs(given, failures=failures) == []
    assert {str(error.path) for error in failures} == set(map(str, given))
    assert str(pickle.loads(pickle.dumps(failures[0])).path) == str(failures[0].path)


def test_a_folder_given_twice_is_not_an_error(album):
    assert len(find.find_photographs([album, album])) == 5


def test_an_entry_that_cannot_be_reached_does_not_end_the_walk(album, monkeypatch):
    listdir, stat_ = os.listdir, Path.stat

    def refuse(path, *arguments, **keywords):
        if Path(path).name == "deep":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listdir(path, *arguments, **keywords)

    def refuse_stat(path, **keywords):
        if path.name == "b.jpg":
            raise OSError(errno.EIO, "Input/output error")
        if path.name == "own.png":  # removed since the folder was listed
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return stat_(path, **keywords)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(Path, "stat", refuse_stat)
    failures: list[ImageError] = []
    assert relatives(find.find_photographs([album], failures=failures)) == ["a.JPG", "sub/c.webp"]
    assert [str(failure) for failure in failures] == [
        f"{album / 'b.jpg'}: it can't be opened (Input/output error); check the path and the disk",
        f"{album / 'sub' / 'deep'}: no permission to read it; change its permissions or use a copy",
    ]
    with pytest.raises(ImageError, match=r"b\.jpg"):
        find.find_photographs([album])


def test_pictures_of_other_kinds_are_counted(album, tmp_path):
    for name in ("1.CR2", "2.nef", "sub/3.dng", "p.pdf", "v.MOV", ".hidden.pdf"):
        (album / name).write_bytes(b"anything")
    left_out: Counter[str] = Counter()
    assert len(find.find_photographs([album], left_out=left_out)) == 5
    assert left_out == {"camera raw": 3, "PDF": 1, "video": 1}
    assert find.describe(left_out).startswith("3 camera raw, 1 ")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "1.cr3").write_bytes(b"anything")
    with pytest.raises(ImageError, match=r"holds no photographs .* but 1 camera raw; name another one"):
        find.find_photographs([tmp_path / "raw"])


def test_photographs_that_need_a_missing_package_are_one_failure(album, monkeypatch):
    from vitnp.io import kinds

    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda module: None)
    for name in ("x.heic", "sub/y.HIF"):
        (album / name).write_bytes(b"\0\0\0\x18ftypheic")
    (album / "jpeg.heic").write_bytes(b"\xff\xd8\xff\xe0 a JPEG under another name")
    failures: list[ImageError] = []
    found = find.find_photographs([album], failures=failures)
    assert relatives(found) == ["a.JPG", "b.jpg", "jpeg.heic", "own.png", "sub/c.webp", "sub/deep/d.TIFF"]
    assert [str(failure) for failure in failures] == [
        f"{album}: 2 HEIC left out, such as {album / 'sub' / 'y.HIF'}, for lack of a package; pip install 'vitnp[heic]'"
    ]

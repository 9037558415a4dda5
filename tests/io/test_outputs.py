"""Writing files: atomic replacement, stamps, unique names, and the pictures of a result."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

import vitnp
from vitnp import outputs
from vitnp.errors import OutputError
from vitnp.export import naming
from vitnp.io import part_files, stamp
from vitnp.io import write as write_
from vitnp.io.find import Photograph
from vitnp.io.write import make_folder, write_json, write_npy, write_npz, write_png, write_sidecar, write_text
from vitnp.masks import overlay
from vitnp.masks.boxes import bounding_boxes
from vitnp.masks.cutout import cutout

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

STAMP = {"vitnp:parameters": "12ab", "vitnp:photograph": "34cd"}

WRITERS = {
    "a.png": lambda path: write_png(path, np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8), STAMP),
    "a.npy": lambda path: write_npy(path, np.arange(5000.0), STAMP),
    "a.npz": lambda path: write_npz(path, {"mask": np.arange(5000.0)}, STAMP, compressed=False),
    "z.npz": lambda path: write_npz(path, {"mask": np.random.default_rng(0).random(5000)}, STAMP),
    "a.txt": lambda path: write_text(path, "word " * 5000),
    "a.json": lambda path: write_json(path, list(range(5000))),
}
every_writer = pytest.mark.parametrize("name", WRITERS)


# --- Atomic replacement ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "picture",
    [
        np.arange(256, dtype=np.uint8).reshape(16, 16),
        np.arange(65536, dtype=np.uint16).reshape(256, 256)[::-1],
        np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8),
    ],
    ids=["L", "16 bit", "RGB", "RGBA"],
)
def test_png_round_trip(tmp_path, picture):
    write_png(tmp_path / "a.png", picture, STAMP)
    with Image.open(tmp_path / "a.png") as file:
        assert (np.asarray(file) == picture).all()
        assert file.text == {"Software": f"vitnp {vitnp.__version__}", **STAMP}
    bits_per_sample = (tmp_path / "a.png").read_bytes()[24]
    assert bits_per_sample == 8 * picture.dtype.itemsize
    write_png(tmp_path / "b.png", Image.fromarray(np.ascontiguousarray(picture)), STAMP)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_masks_become_black_and_white(tmp_path):
    mask = np.array([[True, False], [False, True]])
    write_png(tmp_path / "a.png", mask)
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == "L"
        assert np.asarray(file).tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.float64(3),
        np.zeros((0, 3)),
        np.array(["ä", "bc"]),
        np.arange(5, dtype=">i2"),
        np.array([True, False]),
    ],
    ids=str,
)
def test_arrays_round_trip(tmp_path, array):
    write_npy(tmp_path / "a.npy", array, STAMP)
    write_npz(tmp_path / "a.npz", {"x": array}, {"seed": 3, "sizes": (1, 2), "share": np.float32(0.5), **STAMP})
    with np.load(tmp_path / "a.npz") as archive:
        for loaded in (np.load(tmp_path / "a.npy"), archive["x"]):
            assert loaded.dtype == np.asarray(array).dtype
            assert (loaded == array).all()
        assert json.loads(str(archive["metadata"])) == {"seed": 3, "sizes": [1, 2], "share": 0.5, **STAMP}


def test_large_array_round_trip(tmp_path, monkeypatch):
    monkeypatch.setattr(write_, "_WRITE_BYTES", 1000)
    array = np.random.default_rng(0).random((50, 40)).astype(np.float32)
    write_npy(tmp_path / "a.npy", array)
    assert (np.load(tmp_path / "a.npy", mmap_mode="r") == array).all()


def test_objects_are_not_pickled(tmp_path):
    with pytest.raises(TypeError):
        write_npy(tmp_path / "a.npy", np.array([{}]))
    assert os.listdir(tmp_path) == []


def test_json(tmp_path):
    value = {"path": Path("a"), "iou": np.float64(0.5), "n": np.int64(3), "row": np.arange(2), "name": "Zoë \udcff"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "path": "a",
        "iou": 0.5,
        "n": 3,
        "row": [0, 1],
        "name": r"Zoë \xff",  # which every reader of JSON accepts
    }


@every_writer
def test_equal_content_gives_equal_bytes(tmp_path, name):
    (tmp_path / "other").mkdir()
    WRITERS[name](tmp_path / name)
    WRITERS[name](tmp_path / "other" / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@every_writer
def test_permissions_follow_the_umask(tmp_path, name):
    before = os.umask(0o027)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


@every_writer
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "No space left on device")],
    ids=["interrupted", "memory", "full disk"],
)
@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch, name, error, moment):
    (tmp_path / name).write_bytes(b"precious")

    class Failing:
        """A file whose second write fails, or the first one if it is long."""

        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115 - closed by __exit__
            self.writes = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, attribute):
            return getattr(self.file, attribute)

        def write(self, data):
            self.writes += 1
            if self.writes > 1 or len(data) > 4000:
                self.file.write(data[:10])
                raise error
            return self.file.write(data)

        def writelines(self, lines):
            for line in lines:
                self.write(line)

        def fileno(self):
            raise OSError("not a file of the system")

    def fail(*_):
        raise error

    if moment == "write":
        monkeypatch.setattr(part_files, "open", Failing, raising=False)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)) as caught:
        WRITERS[name](tmp_path / name)
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"can't write {tmp_path / name}: the disk is full; free some space or write elsewhere"
        )
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"precious"


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_a_file_size_limit_leaves_no_file(tmp_path):
    """Write more than a resource limit allows: as on a full disk, a write fails in the middle."""
    script = textwrap.dedent("""
        import resource, sys
        import numpy as np
        from vitnp.io import write as outputs
        from vitnp.errors import OutputError
        noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        folder = sys.argv[1]
        for write in (lambda: outputs.write_png(folder + "/a.png", noise),
                      lambda: outputs.write_npy(folder + "/a.npy", noise),
                      lambda: outputs.write_npz(folder + "/a.npz", {"a": noise}),
                      lambda: outputs.write_npz(folder + "/a.npz", {"a": noise}, compressed=False),
                      lambda: outputs.write_text(folder + "/a.txt", "a" * 60_000)):
            try:
                write()
            except OutputError as error:
                print(error)
    """)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert run.stdout.count("the file would be larger than allowed here") == 5
    assert os.listdir(tmp_path) == []


@every_writer
def test_paths_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).mkdir()
    cases = [
        (tmp_path / "missing" / name, "folder doesn't exist"),
        (tmp_path / "file" / name, "part of the path is a file"),
        (tmp_path / "folder" / name, "in the way"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "nul\0", "null"),
    ]
    for path, words in cases:
        with pytest.raises(OutputError, match=words) as error:
            WRITERS[name](path)
        assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == [name]


def test_long_names(tmp_path):
    write_text(tmp_path / ("x" * 255), "a")
    assert os.listdir(tmp_path) == ["x" * 255]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission"):
            write_text(tmp_path / "a.txt", "a")
    finally:
        tmp_path.chmod(0o700)


def test_make_folder(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="file"):
            make_folder(path)


# --- Stamps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "z.npz"])
def test_stamp_round_trip(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert stamp.stamp(tmp_path / name) == STAMP
    assert stamp.is_own_output(str(tmp_path / name))
    (tmp_path / "renamed.jpg").write_bytes((tmp_path / name).read_bytes())
    assert stamp.stamp(tmp_path / "renamed.jpg") == STAMP


def test_files_of_other_programs_have_no_stamp(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", "another program")
    text.add_text("vitnp:parameters", "12ab")
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    Image.new("L", (4, 4)).save(tmp_path / "c.jpg")
    np.save(tmp_path / "d.npy", np.arange(4))
    np.savez(tmp_path / "e.npz", a=np.arange(4))
    (tmp_path / "f.txt").write_text('{"Software":"vitnp 1"}')
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "missing", "nul\0"):
        assert stamp.stamp(path) is None
        assert not stamp.is_own_output(path)


@pytest.mark.slow(reason="many inputs")
@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    name=st.sampled_from(["a.png", "a.npy", "a.npz"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255))),
    keep=st.integers(0, 10**6),
)
def test_stamp_never_raises(tmp_path_factory, name, edits, keep):
    folder = tmp_path_factory.getbasetemp()
    WRITERS[name](folder / name)
    data = bytearray((folder / name).read_bytes())
    for position, value in edits:
        # Half of the edits change the first or the last bytes, where the stamps are.
        position = position % len(data) if position % 2 else -(position % 300) if position % 4 else position % 100
        data[position] = value
    (folder / name).write_bytes(data[: keep % (2 * len(data))])
    found = stamp.stamp(folder / name)
    assert found is None or all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize(
    "tail", [b'{"Software":"vitnp ' + b"[" * 3000, b'{"Software":"vitnp 1"', b'{"Software":"vitnp 1"}x']
)
def test_stamp_ignores_damaged_json(tmp_path, tail):
    (tmp_path / "a").write_bytes(b"\x93NUMPY" + tail)
    assert stamp.stamp(tmp_path / "a") is None


def test_parameters_hash():
    one = stamp.parameters_hash({"size": 320, "mean": (0.1, 0.2), "nested": {"b": None, "a": True}})
    assert len(one) == 32
    assert one == stamp.parameters_hash({"nested": {"a": True, "b": None}, "mean": [0.1, 0.2], "size": np.int64(320)})
    assert one != stamp.parameters_hash({"size": 321, "mean": (0.1, 0.2), "nested": {"b": None, "a": True}})
    # Computed with the standard library: blake2b, 16 bytes, of {"seed":0}.
    assert stamp.parameters_hash({"seed": 0}) == "cae4c3f6d166bc33c44b075faeb33168"


def test_files_of_other_programs_are_not_overwritten(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name)
    own = [tmp_path / name for name in ("a.png", "a.npy", "a.npz")]
    stamp.refuse_foreign([*own, tmp_path / "missing.png"])
    Image.new("L", (4, 4)).save(tmp_path / "b_mask.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    for foreign in ("b_mask.png", "broken.png", "a.txt"):
        with pytest.raises(OutputError, match=f"{foreign}.*--overwrite"):
            stamp.refuse_foreign([*own, tmp_path / foreign])


def test_sidecar_stamps_any_other_format_until_the_file_changes(tmp_path):
    path = tmp_path / "a_overlay.jpg"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(OutputError, match="did not write it"):
        stamp.refuse_foreign([path])
    write_sidecar(path, STAMP)
    assert sorted(os.listdir(tmp_path)) == ["a_overlay.jpg", "a_overlay.jpg.vitnp.json"]
    assert stamp.stamp(path) == STAMP and stamp.is_own_output(path)
    stamp.refuse_foreign([path])
    Image.new("RGB", (4, 4), "red").save(path)  # by another program, under the same name
    assert stamp.stamp(path) is None
    path.unlink()
    assert stamp.stamp(path) is None


def test_sidecar_does_not_count_beside_a_format_that_holds_a_stamp(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    write_sidecar(tmp_path / "a.png", STAMP)
    assert stamp.stamp(tmp_path / "a.png") is None


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"Software": "vitnp 1"}', b"[" * 4000, b"\xff"])
def test_damaged_sidecars_are_no_stamp(tmp_path, content):
    (tmp_path / "a.txt").write_text("text")
    stamp.sidecar_path(tmp_path / "a.txt").write_bytes(content)
    assert stamp.stamp(tmp_path / "a.txt") is None


def test_sidecar_of_a_missing_file_is_one_clear_message(tmp_path):
    with pytest.raises(OutputError, match=r"cannot stamp .*a\.jpg"):
        write_sidecar(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


# --- Names -----------------------------------------------------------------------------------------------------------


def stems(names, out=None, relative=None):
    relative = relative or [os.path.basename(name) for name in names]
    photographs = [Photograph(Path(name), Path(path)) for name, path in zip(names, relative, strict=True)]
    return [stem.as_posix() for stem in naming.output_stems(photographs, out)]


def test_plain_names():
    assert stems(["p/a.jpg", "q/b.c.png", "noext"]) == ["p/a", "q/b.c", "noext"]
    assert stems(["p/a.jpg", "q/b.c.png"], "out") == ["out/a", "out/b.c"]
    assert stems(["p/x/a.jpg", "p/y/a.jpg"], "out", ["x/a.jpg", "y/a.jpg"]) == ["out/x/a", "out/y/a"]
    assert naming.output_stems([]) == []


def test_names_that_would_collide_keep_their_extension():
    assert stems(["a.jpg", "b.jpg", "a.png"]) == ["a.jpg", "b", "a.png"]
    assert stems(["p/a.jpg", "p/A.png", "q/a.jpg"]) == ["p/a.jpg", "p/A.png", "q/a"]
    assert stems(["a.jpg", "a.png", "a.jpg.webp"]) == ["a.jpg", "a.png", "a.jpg.webp"]
    assert stems(["\u00e9.jpg", "e\u0301.png"]) == ["\u00e9.jpg", "e\u0301.png"]


def test_no_output_has_the_name_of_an_input():
    assert stems(["a.jpg", "a_mask.png"]) == ["a.jpg", "a_mask"]
    assert stems(["a.jpg", "A_Overlay.PNG"]) == ["a.jpg", "A_Overlay"]
    assert stems(["a.jpg", "a_mask.jpg"]) == ["a", "a_mask"]
    assert stems(["a.jpg", "a_mask.png"], "out") == ["out/a", "out/a_mask"]
    assert stems(["p/a.jpg", "p/a_mask.png"], "p") == ["p/a.jpg", "p/a_mask"]
    # The name with its extension is the name of another input, so a hash is added.
    assert stems(["a.jpg", "a_mask.png", "a.jpg_mask.png"]) == [hashed("a.jpg"), "a_mask", "a.jpg_mask"]
    assert stems(["a..jpg", "a._mask.png"]) == ["a..jpg", "a._mask"]


def hashed(name: str, exact: str | None = None) -> str:
    """Return the stem of a name with the hash of an exact one, by default the same."""
    return f"{name}-{hashlib.blake2b(os.fsencode(exact or name)).hexdigest()[:8]}"


def test_equal_names_in_several_folders_go_into_folders_of_these_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stems(["p/a.jpg", "q/a.jpg", "q/b.jpg"], "out") == ["out/p/a.jpg", "out/q/a.jpg", "out/b"]


def test_equal_names_in_folders_of_equal_names_get_hashes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs, relative = ["p/x/a.jpg", "q/x/a.jpg"], ["x/a.jpg", "x/a.jpg"]
    expected = [f"out/x/{hashed('a.jpg', str(tmp_path / name))}" for name in photographs]
    assert stems(photographs, "out", relative) == expected
    assert stems([*photographs, "r/x/a.jpg", "p/x/b.jpg"], "out", [*relative, "x/a.jpg", "x/b.jpg"])[:2] == expected
    assert [os.path.dirname(stem) for stem in stems(photographs, "out")] == ["out", "out"]  # given as files


PAIRS = {
    "case": ("IMG_1.JPG", "IMG_1.jpg"),
    "unicode": ("caf\u00e9.jpg", "cafe\u0301.jpg"),
    "both": ("CAF\u00c9.jpg", "cafe\u0301.JPG"),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("others", [["AAA.jpg"], ["img_1.Jpg", "CAFE\u0301.JPG"], ["IMG_1.png"]])
@pytest.mark.parametrize("out", [None, "out"])
def test_names_that_differ_by_case_or_unicode_form_get_stable_hashes(pair, others, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = [f"{out or 'p'}/{hashed(name)}" for name in pair]
    assert stems([f"p/{name}" for name in pair], out) == expected
    for names in ([*others, *pair], [*pair[::-1], *others]):
        found = dict(zip(names, stems([f"p/{name}" for name in names], out), strict=True))
        assert [found[name] for name in pair] == expected


def test_folders_that_differ_by_case_keep_their_files_apart():
    found = stems(["P/a.jpg", "p/a.jpg", "p/b.jpg"], "out", ["P/a.jpg", "p/a.jpg", "p/b.jpg"])
    assert found == [f"out/P/{hashed('a.jpg', 'P/a.jpg')}", f"out/p/{hashed('a.jpg', 'p/a.jpg')}", "out/p/b"]


def test_a_photograph_given_twice_gets_two_names():
    assert len(set(stems(["p/a.jpg"] * 3 + ["p/A.jpg"], "out"))) == 4


def test_names_of_devices_get_an_underscore():
    assert stems(["aux.jpg", "Con.tar.png", "lpt1 .jpg", "auxiliary.jpg"]) == [
        "_aux",
        "_Con.tar",
        "_lpt1 ",
        "auxiliary",
    ]


@pytest.mark.slow(reason="many inputs")
@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    names=st.lists(
        st.from_regex(r"[pqP]/([aAb]|a\.jpg|a_mask|b-1)\.(jpg|png|PNG)", fullmatch=True), max_size=12, unique=True
    ),
    out=st.sampled_from([None, "out", "p"]),
)
def test_outputs_never_collide_with_each_other_or_an_input(names, out):
    taken = {os.path.abspath(name).casefold() for name in names}
    for stem in stems(names, out):
        for writer in outputs.WRITERS.values():
            path = os.path.abspath(stem + writer.suffix).casefold()
            assert path not in taken
            taken.add(path)


# --- Pictures --------------------------------------------------------------------------------------------------------


def disc(height: int, width: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - height / 2, x - width / 2) < radius


@pytest.mark.parametrize(
    "color", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (0, 190, 255), (250, 20, 20), (20, 120, 20)]
)
def test_overlay_shows_the_edge_on_any_background(color):
    """Object and background have the same color, so only the outline of the mask is visible."""
    mask = disc(300, 400, 90)
    rgb = np.broadcast_to(np.array(color, np.uint8), (300, 400, 3))
    before = rgb.copy()
    shown = overlay.overlay(rgb, mask).astype(int)
    assert (rgb == before).all()
    assert shown.shape == rgb.shape
    # Along a row, the strongest contrast between neighbors is at the edge.
    row = shown[150]
    contrast = np.abs(np.diff(row, axis=0)).max(axis=1)
    assert contrast.max() > 60
    edges = [int(np.argmax(contrast[:200])), 200 + int(np.argmax(contrast[200:]))]
    assert all(min(abs(edge - 110), abs(edge - 290)) <= 4 for edge in edges)
    # Far from the edge the picture is uniform.
    assert (shown[150, 120:280] == shown[150, 200]).all()
    assert (shown[0] == shown[0, 0]).all()
    assert shown[0, 0].max() <= rgb[0, 0].max()


def test_overlay_tints_inside_and_dims_and_grays_outside():
    rgb = np.empty((200, 200, 3), np.uint8)
    rgb[:] = (200, 40, 40)
    shown = overlay.overlay(rgb, disc(200, 200, 50)).astype(int)
    inside, outside = shown[100, 100], shown[2, 2]
    assert abs(inside - rgb[0, 0]).max() < 40
    assert outside.max() - outside.min() < 80  # of 160
    assert outside.mean() < rgb[0, 0].mean()


@pytest.mark.parametrize("side", [100, 1000, 3000])
def test_outline_width_scales_with_the_image(side):
    mask = np.zeros((side, side), bool)
    mask[:, side // 2 :] = True
    shown = overlay.overlay(np.full((side, side, 3), 120, np.uint8), mask).astype(int)[side // 2]
    flat_outside, flat_inside = shown[0], shown[-1]
    differs = (np.abs(shown - flat_outside).max(axis=1) > 12) & (np.abs(shown - flat_inside).max(axis=1) > 12)
    width = np.count_nonzero(differs)
    assert np.diff(np.flatnonzero(differs)).max(initial=1) == 1
    assert max(2, 0.004 * side) <= width <= max(5, 0.012 * side)


def test_overlay_does_not_depend_on_the_bands(monkeypatch):
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (230, 90, 3), dtype=np.uint8)
    mask = ndimage.gaussian_filter(rng.standard_normal((230, 90)), 4) > 0
    whole = overlay.overlay(rgb, mask)
    monkeypatch.setattr("vitnp.masks.overlay._BAND_PIXELS", 1)
    assert (overlay.overlay(rgb, mask) == whole).all()
    assert (overlay.overlay(np.asfortranarray(rgb), mask[:, ::-1][:, ::-1]) == whole).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (8, 8)])
def test_pictures_of_small_photographs(shape):
    rgb = np.full((*shape, 3), 100, np.uint8)
    for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
        assert overlay.overlay(rgb, mask).shape == (*shape, 3)
        assert cutout(rgb, mask * np.uint16(65535)).shape == (*shape, 4)


def test_empty_and_full_masks_have_no_outline():
    rgb = np.random.default_rng(0).integers(0, 256, (1, 1, 3), dtype=np.uint8).repeat(60, 0).repeat(60, 1)
    for value in (False, True):
        shown = overlay.overlay(rgb, np.full((60, 60), value))
        assert (shown == shown[0, 0]).all()


def test_cutout(monkeypatch):
    monkeypatch.setattr("vitnp.masks.cutout._BAND_PIXELS", 50)
    rng = np.random.default_rng(0)
    rgb = rng.integers(1, 256, (40, 30, 3), dtype=np.uint8)
    soft = rng.integers(0, 65536, (40, 30), dtype=np.uint16)
    soft[:10], soft[-10:] = 0, 65535
    rgba = cutout(rgb, soft)
    assert not ((rgba[..., 3] >= 128) & (soft < 32768)).any()
    assert (rgba[:10] == 0).all()
    assert (rgba[-5:, :, 3] == 255).all()  # away from the edge
    opaque = rgba[..., 3] == 255
    assert (rgba[..., :3][opaque] == rgb[opaque]).all()


def test_a_cutout_without_object_is_transparent():
    soft = np.full((6, 5), 32767, np.uint16)
    rgb = np.full((6, 5, 3), 9, np.uint8)
    assert not cutout(rgb, soft).any()
    soft[2, 3] = 32768
    assert cutout(rgb, soft)[..., 3].any()


def boxes_by_labels(mask, min_area):
    """Compute the boxes from a label image."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = []
    for (rows, columns), area in zip(ndimage.find_objects(labels), areas, strict=True):
        boxes.append((columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start, int(area)))
    boxes.sort(key=lambda box: (-box[4], box[1], box[0]))
    return [box for box in boxes if box[4] >= min(min_area, boxes[0][4])]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    density=st.floats(0, 1),
    smooth=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.001, 0.05]),
)
def test_bounding_boxes_against_a_label_image(height, width, density, smooth, seed, share):
    noise = np.random.default_rng(seed).random((height, width))
    noise = ndimage.gaussian_filter(noise, smooth) if smooth else noise
    mask = noise < np.quantile(noise, density)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitnp.masks.overlay._BAND_PIXELS", 1 + seed % 200)
        boxes = bounding_boxes(mask, min_area_share=share)
    assert boxes == boxes_by_labels(mask, share * mask.size)
    assert all(type(value) is int for box in boxes for value in box)


def test_bounding_boxes_by_hand():
    mask = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]], bool)
    box = bounding_boxes(mask)[0]
    assert (box.x, box.y, box.width, box.height, box.area) == (0, 0, 2, 3, 3)
    assert [tuple(box)[:4] for box in bounding_boxes(mask)] == [(0, 0, 2, 3), (4, 0, 1, 2), (3, 3, 2, 1)]
    assert len(bounding_boxes(mask, min_area_share=0.14)) == 1
    assert bounding_boxes(np.zeros((3, 3), bool)) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_named_like_a_sidecar_is_not_waited_for(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    os.mkfifo(tmp_path / "a.svg.vitnp.json")
    assert stamp.stamp(tmp_path / "a.svg") is None

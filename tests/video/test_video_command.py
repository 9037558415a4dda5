"""The command `vitnp segment` on frame folders and videos."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
from PIL import Image

from bench.quality.clips import moving_object
from vitnp.cli.segment import main
from vitnp.errors import UsageError
from vitnp.masks.palette import bright_colors
from vitnp.video.preview import render

videos = importlib.import_module("videos")

HAS_AV = importlib.util.find_spec("av") is not None
needs_av = pytest.mark.skipif(not HAS_AV, reason="PyAV, of the extra video, is not installed")
PREVIEW = {"clip_preview.mp4", "clip_preview.mp4.vitnp.json"} if HAS_AV else set()
SIZE = (72, 96)


def write_frames(folder, n_frames: int = 3) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(moving_object(0, n_frames, SIZE).frames, 9):
        Image.fromarray(frame).save(folder / f"f{number}.png")


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fast(*arguments: object) -> int:
    return main([*map(str, arguments), "--short-side", "96", "--quiet"])


def test_frame_folder(tmp_path):
    write_frames(tmp_path / "clip")
    assert fast(tmp_path / "clip", "--video", "--out", tmp_path / "out") == 0
    assert names(tmp_path / "out") == {"f9_mask.png", "f10_mask.png", "f11_mask.png", "clip_video.json", *PREVIEW}
    record = json.loads((tmp_path / "out" / "clip_video.json").read_bytes())
    assert [entry["photograph"] for entry in record["frames"]] == ["f9.png", "f10.png", "f11.png"]
    with Image.open(tmp_path / "out" / "f10_mask.png") as mask:
        assert mask.size == SIZE[::-1]
        assert record["frames"][1]["share"] == pytest.approx(np.asarray(mask).mean() / 255, abs=1e-6)


def test_outputs_beside_the_frames_are_no_frames_of_the_next_run(tmp_path, capsys):
    write_frames(tmp_path / "clip")
    assert fast(tmp_path / "clip", "--video") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "clip").iterdir()}
    assert main([str(tmp_path / "clip"), "--video", "--short-side", "96"]) == 0
    assert "nothing has changed" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "clip").iterdir()} == before


def test_json_has_a_line_for_each_frame(tmp_path, capsys):
    write_frames(tmp_path / "clip")
    assert fast(tmp_path / "clip", "--video", "--json", "--classes", "1", "--out", tmp_path / "out") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert {"mask", "labels"} == set(lines[0]["outputs"]) and lines[0]["status"] == "done"


def test_a_preview_shows_classes_in_colors_of_their_own():
    rgb, mask, labels = np.full((90, 120, 3), 90, np.uint8), np.zeros((90, 120), bool), np.zeros((90, 120), np.uint16)
    for first, label in ((10, 1), (50, 2), (90, 258)):
        mask[20:70, first : first + 24] = True
        labels[20:70, first : first + 24] = label
    plain, drawn = render(rgb, mask), render(rgb, mask, labels)
    centers = drawn[45, [22, 62, 102]].astype(int)
    assert len(np.unique(centers, axis=0)) == 3 and (np.abs(centers - plain[45, [22, 62, 102]]) > 30).any(axis=1).all()
    assert centers[:2].argmax(axis=1).tolist() == bright_colors(3)[1:].argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_array_equal(drawn[:10], plain[:10])
    np.testing.assert_array_equal(render(rgb, mask, np.zeros_like(labels)), plain)


def test_without_av_a_frame_folder_has_no_preview(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("vitnp.export.video_run.can_preview", lambda: False)
    write_frames(tmp_path / "clip")
    assert main([str(tmp_path / "clip"), "--video", "--short-side", "96", "--out", str(tmp_path / "out")]) == 0
    assert "no preview: it needs the package av; pip install 'vitnp[video]'" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"pip install 'vitnp\[video\]'"):
        main([str(tmp_path / "a.mp4")])


def test_broken_frame_fails_alone(tmp_path, capsys):
    write_frames(tmp_path / "clip")
    (tmp_path / "clip" / "f10.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert fast(tmp_path / "clip", "--video", "--out", tmp_path / "out") == 3
    assert "f10.png" in capsys.readouterr().err
    assert {"f9_mask.png", "f11_mask.png"} <= names(tmp_path / "out")
    assert "f10_mask.png" not in names(tmp_path / "out")


def test_frames_of_two_sizes_are_refused_before_any_work(tmp_path, capsys):
    write_frames(tmp_path / "clip")
    Image.new("RGB", (50, 60)).save(tmp_path / "clip" / "f12.png")
    assert fast(tmp_path / "clip", "--video", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "f12.png: this frame has 50 x 60 pixels" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["f9_mask.png", "clip_video.json", "clip_preview.mp4"])
def test_foreign_files_are_replaced_only_with_overwrite(tmp_path, name, capsys):
    if name == "clip_preview.mp4" and not HAS_AV:
        pytest.skip("PyAV, of the extra video, is not installed")
    write_frames(tmp_path / "clip")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert fast(tmp_path / "clip", "--video", "--out", tmp_path / "out") == 2
    assert "vitnp did not write it" in capsys.readouterr().err
    assert names(tmp_path / "out") == {name} and (tmp_path / "out" / name).read_text() == "mine"
    assert fast(tmp_path / "clip", "--video", "--out", tmp_path / "out", "--overwrite") == 0


def test_interrupt_leaves_complete_frames_only_and_the_next_run_goes_on(tmp_path, monkeypatch):
    write_frames(tmp_path / "clip", 12)
    reported = []

    def interrupt(args, run, failures):
        for outcome in run.outcomes():
            reported.append(outcome)
            if len(reported) == 4:
                raise KeyboardInterrupt
        return len(reported)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vitnp.cli.video._report", interrupt)
        fast(tmp_path / "clip", "--video", "--out", tmp_path / "out", "--threads", "1")
    left = names(tmp_path / "out")
    assert left and all(name.endswith("_mask.png") for name in left) and len(left) < 12
    for name in left:
        with Image.open(tmp_path / "out" / name) as mask:
            mask.load()
    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in left}
    assert fast(tmp_path / "clip", "--video", "--out", tmp_path / "out") == 0
    assert len(json.loads((tmp_path / "out" / "clip_video.json").read_bytes())["frames"]) == 12
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in left} == written


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["clip", "photograph.png", "--video"], "--video takes folders of frames and videos, got .*photograph.png"),
        (["clip.mp4", "photograph.png"], "videos, or photographs, not both"),
        (["clip", "--video", "--out", "a.png"], "must be a folder for the frames of a clip"),
    ],
)
def test_wrong_usage(tmp_path, arguments, message):
    write_frames(tmp_path / "clip")
    with pytest.raises(UsageError, match=message):
        fast(*(tmp_path / text if "clip" in text or "png" in text else text for text in arguments))


@needs_av
def test_video(tmp_path):
    videos.write_video(tmp_path / "clip.mp4", list(moving_object(0, 4, SIZE).frames), times=[0, 0.1, 0.4, 0.5])
    assert fast(tmp_path / "clip.mp4") == 0
    out = tmp_path / "clip"
    masks = {f"clip_00000{number}_mask.png" for number in range(4)}
    assert names(out) == {*masks, "clip_video.json", *PREVIEW}
    from vitnp import read_frames

    record = json.loads((out / "clip_video.json").read_bytes())
    preview = list(read_frames(out / "clip_preview.mp4"))
    assert [frame.seconds for frame in preview] == pytest.approx([entry["seconds"] for entry in record["frames"]])
    assert [entry["seconds"] for entry in record["frames"]] == pytest.approx([0, 0.1, 0.4, 0.5])
    assert preview[0].decode().rgb.shape == (*SIZE, 3)


@needs_av
def test_damaged_video_beside_a_good_one(tmp_path, capsys):
    videos.write_video(tmp_path / "good.mp4", list(moving_object(0, 2, SIZE).frames))
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    assert fast(tmp_path / "bad.mp4", tmp_path / "good.mp4", "--out", tmp_path / "out") == 3
    assert "bad.mp4: not a video that can be read" in capsys.readouterr().err
    assert "good_000001_mask.png" in names(tmp_path / "out")

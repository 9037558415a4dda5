"""Frames of folders, lists and videos."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from PIL import Image

from vitnp.errors import ImageError, UsageError
from vitnp.video.frames import check_sizes, is_video, read_frames
from vitnp.video.sample import sample_frames

videos = importlib.import_module("videos")

needs_av = pytest.mark.skipif(not importlib.util.find_spec("av"), reason="PyAV, of the extra video, is not installed")


def gray(level: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def levels(frames) -> list[int]:
    """Return the mean gray of each frame, to the nearest ten."""
    return [round(float(frame.decode().rgb.mean()), -1) for frame in frames]


def test_folder_is_read_by_the_numbers_in_names(tmp_path):
    for level, name in ((10, "f1.png"), (20, "f2.png"), (100, "f10.png"), (200, "f020.png")):
        Image.fromarray(gray(level)).save(tmp_path / name)
    (tmp_path / "masks").mkdir()
    Image.fromarray(gray(0)).save(tmp_path / "masks" / "f3.png")
    frames = list(read_frames(tmp_path))
    assert [frame.name for frame in frames] == ["f1", "f2", "f10", "f020"]
    assert levels(frames) == [10, 20, 100, 200]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]


def test_list_of_pictures():
    assert levels(read_frames(gray(level) for level in (50, 60))) == [50, 60]


def test_folder_without_frames_of_its_own(tmp_path):
    (tmp_path / "deeper").mkdir()
    Image.fromarray(gray(0)).save(tmp_path / "deeper" / "a.png")
    with pytest.raises(ImageError, match="must lie in the folder itself"):
        list(read_frames(tmp_path))


def test_sizes_must_be_equal_in_either_orientation(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file, size in zip(files, ((32, 48), (48, 32), (32, 40))):
        Image.fromarray(gray(0, size)).save(file)
    check_sizes(files[:2])
    with pytest.raises(ImageError, match=r"c.png: this frame has 40 x 32 pixels, and a.png 48 x 32"):
        check_sizes(files)


@pytest.mark.parametrize("frames", [3, b"bytes", {"image": 1}])
def test_other_things_are_refused(frames):
    with pytest.raises(UsageError, match="frames must be"):
        list(read_frames(frames))


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert is_video("a.mov") and not is_video("a.jpg")
    with pytest.raises(UsageError, match=r"pip install 'vitnp\[video\]'"):
        list(read_frames(tmp_path / "a.mp4"))


@pytest.mark.parametrize("count, step", [(5, 1), (8, 1), (9, 2), (33, 8)])
def test_sample_is_even_and_small(tmp_path, count, step):
    sample = sample_frames(read_frames([gray(level) for level in range(count)]), tmp_path, most=8)
    assert [int(photograph[0, 0, 0]) for photograph in sample] == list(range(0, count, step))


@needs_av
def test_video_in_order_with_its_times(tmp_path):
    times = [0, 0.1, 0.15, 0.9]
    videos.write_video(tmp_path / "a.mp4", [gray(level) for level in (20, 60, 120, 220)], times)
    frames = list(read_frames(tmp_path / "a.mp4"))
    assert levels(frames) == [20, 60, 120, 220]
    assert [frame.seconds for frame in frames] == pytest.approx(times)
    assert frames[3].name == "a_000003"


@needs_av
def test_turned_video_is_upright(tmp_path):
    picture = gray(0)
    picture[:8] = 200  # a bright top
    videos.write_video(tmp_path / "a.mp4", [picture] * 3)
    videos.turn(tmp_path / "a.mp4")
    turned = next(read_frames(tmp_path / "a.mp4")).decode().rgb
    assert turned.shape == (48, 32, 3)
    assert turned[:, -6:].mean() > 180 and turned[:, :-10].mean() < 20  # on the right


@needs_av
def test_sample_of_a_video_is_kept_on_disk(tmp_path):
    videos.write_video(tmp_path / "a.mp4", [gray(10 * level) for level in range(20)])
    (tmp_path / "kept").mkdir()
    sample = sample_frames(read_frames(tmp_path / "a.mp4"), tmp_path / "kept", most=4)
    assert [path.name for path in sample] == ["0.png", "8.png", "16.png"]
    assert sorted((tmp_path / "kept").iterdir()) == sorted(sample)
    assert [round(float(np.asarray(Image.open(path)).mean()), -1) for path in sample] == [0, 80, 160]


@needs_av
def test_broken_frame_is_left_out_and_the_others_follow(tmp_path):
    rng = np.random.default_rng(0)
    blocks = np.ones((8, 8, 1), np.uint8)
    pictures = [np.kron(rng.integers(0, 255, (4, 6, 3), np.uint8), blocks) for _ in range(8)]
    path = tmp_path / "a.mkv"
    videos.write_video(path, pictures, codec="libx264", gop=1)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = rng.integers(0, 255, 40, np.uint8).tobytes()
    path.write_bytes(content)
    frames = list(read_frames(path))
    (error,) = [frame.error for frame in frames if frame.error]
    assert len(frames) == 8 and "cannot be decoded" in str(error) and "\n" not in str(error)
    good = [frame.index for frame in frames if frame.error is None]
    for index in good:
        assert np.abs(frames[index].decode().rgb.astype(int) - pictures[index]).mean() < 40


@needs_av
@pytest.mark.parametrize(
    "content, message",
    [("sound", "sound but no video"), ("text", "not a video that can be read"), ("none", "no such file")],
)
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "a.mp4"
    if content == "sound":
        videos.write_sound(path)
    elif content == "text":
        path.write_text("not a video" * 100)
    with pytest.raises(ImageError, match=message) as caught:
        list(read_frames(path))
    assert str(caught.value).count("\n") == 0


@needs_av
def test_large_frames_are_refused_before_they_are_decoded(tmp_path):
    videos.write_video(tmp_path / "a.mp4", [gray(0)] * 2)
    with pytest.raises(ImageError, match="48 x 32 pixels are more than the limit of 1,000"):
        list(read_frames(tmp_path / "a.mp4", max_pixels=1000))

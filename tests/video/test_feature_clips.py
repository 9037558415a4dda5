"""The command `vitnp features` on videos."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
import random_vit
from PIL import Image
from safetensors.numpy import save_file

import vitnp
from bench.quality.clips import moving_object
from vitnp.cli.features import main
from vitnp.errors import UsageError
from vitnp.video import features

videos = importlib.import_module("videos")

needs_av = pytest.mark.skipif(not importlib.util.find_spec("av"), reason="PyAV, of the extra video, is not installed")
N_FRAMES = 5


@pytest.fixture
def run(tmp_path):
    """Return the command with a network that takes no time."""
    config = vitnp.ViTConfig(width=64, depth=2, heads=2, patch=8, grid=(4, 4))
    weights = random_vit.random_weights(config, seed=3, hidden=128, class_position=True, dtype=np.float32)
    save_file(weights, tmp_path / "small.safetensors")
    options = ["--model", tmp_path / "small.safetensors", "--heads", "2", "--short-side", "32"]
    return lambda *arguments: main([*map(str, (*arguments, *options))])


@pytest.fixture
def clip(tmp_path):
    videos.write_video(tmp_path / "clip.mp4", list(moving_object(0, N_FRAMES, (48, 64)).frames))
    return tmp_path / "clip.mp4"


def pixels(folder) -> dict[str, bytes]:
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in folder.glob("*.png")}


@needs_av
def test_pictures_of_a_video_are_those_of_its_frames(run, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_CHUNK_FRAMES", 2)
    assert run(clip, "--save", "pca,attention", "--out", tmp_path / "out", "--quiet") == 0
    (tmp_path / "frames").mkdir()
    for frame in vitnp.read_frames(clip):
        Image.fromarray(frame.decode().rgb).save(tmp_path / "frames" / f"{frame.name}.png")
    assert run(tmp_path / "frames", "--save", "pca,attention", "--out", tmp_path / "expected", "--quiet") == 0
    found = pixels(tmp_path / "out")
    assert found == pixels(tmp_path / "expected") and len(found) == 4 * N_FRAMES
    assert "clip_000004_attention_head1.png" in found


@needs_av
def test_json_has_a_line_for_each_frame_and_a_second_run_does_nothing(run, clip, capsys):
    for status in ("done", "skipped"):
        assert run(clip, "--save", "attention", "--json") == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert sorted(line["frame"] for line in lines) == list(range(N_FRAMES))
        assert {line["status"] for line in lines} == {status}
        assert {line["photograph"] for line in lines} == {str(clip)}
    assert len(pixels(clip.with_suffix(""))) == 3 * N_FRAMES  # beside the video


@needs_av
def test_basis_is_of_photographs_and_frames_together(run, clip, tmp_path):
    Image.fromarray(moving_object(1, 1, (48, 64)).frames[0]).save(tmp_path / "a.png")
    digests = []
    for number, sources in enumerate(([clip], [tmp_path / "a.png"], [clip, tmp_path / "a.png"])):
        basis = tmp_path / f"{number}.safetensors"
        arguments = ("--save", "pca", "--out", tmp_path / f"out{number}", "--save-basis", basis, "--quiet")
        assert run(*sources, *arguments) == 0
        digests.append(vitnp.PatchPCA.load(basis).digest)
    assert len(set(digests)) == 3
    assert len(pixels(tmp_path / "out2")) == N_FRAMES + 1


@needs_av
@pytest.mark.parametrize("which", ["pca", "attention"])
def test_what_is_no_video_fails_alone(run, clip, tmp_path, capsys, which):
    (tmp_path / "b.mp4").write_text("no video" * 100)
    out = tmp_path / "out"
    assert run(tmp_path / "b.mp4", clip, "--save", which, "--out", out, "--quiet") == 3
    assert "b.mp4: not a video that can be read" in capsys.readouterr().err
    assert len(pixels(out)) == N_FRAMES * (1 if which == "pca" else 3)
    assert run(tmp_path / "b.mp4", "--save", which, "--out", out, "--quiet") == 2


@needs_av
def test_photograph_of_the_name_of_a_frame_is_refused(run, clip, tmp_path):
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "clip_000002.png")
    with pytest.raises(UsageError, match="a photograph has the name of its frames"):
        run(clip, tmp_path / "clip_000002.png", "--save", "pca", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_of_photographs_are_refused(run):
    with pytest.raises(UsageError, match=r"--mask takes photographs, got the video a.mp4; give a folder of its frames"):
        run("a.mp4", "--mask")


def test_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'vitnp\[video\]'"):
        run("a.mp4", "--save", "pca,attention")

"""The examples run without arguments and write what they say, and nothing beside it."""

from __future__ import annotations

import pathlib
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
PHOTOGRAPHS = pathlib.Path(__file__).parent / "photographs"


def run(name: str, *arguments: object) -> None:
    """Run an example in this process, as ``python examples/NAME.py ARGUMENTS`` would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def written(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_every_example_is_tested():
    tested = {name.removeprefix("test_").removesuffix("_example") for name in globals() if name.endswith("_example")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_simple_example(tmp_path, capsys):
    run("simple", PHOTOGRAPHS / "coffee.jpg", "--out", tmp_path)
    assert written(tmp_path) == {"coffee_mask.png", "coffee_overlay.png", "coffee_cutout.png"}
    assert 0.1 < (read(tmp_path / "coffee_mask.png") > 0).mean() < 0.9
    assert "foreground" in capsys.readouterr().out


@pytest.mark.slow(reason="runs the example")
def test_features_example(tmp_path, capsys):
    run("features", "--out", tmp_path)
    assert written(tmp_path) == {
        f"{name}_{what}" for name in ("astronaut", "camera") for what in ("keys.npy", "pca.png")
    }
    assert np.load(tmp_path / "camera_keys.npy").shape == (20, 20, 192)
    assert read(tmp_path / "camera_pca.png").shape == (320, 320, 3)
    # The astronaut's face is most similar to that of the man with the camera.
    assert "camera.jpg: patch (5, 9)" in capsys.readouterr().out


def test_collection_example(tmp_path, capsys):
    run("collection", "--out", tmp_path)
    names = ("astronaut", "camera", "chelsea", "coffee", "rocket")
    pictures = {f"{name}_{kind}.png" for name in names for kind in ("mask", "overlay")}
    assert written(tmp_path) == {*pictures, "rocket_labels.png", "fitted.safetensors"}
    assert set(np.unique(read(tmp_path / "rocket_labels.png"))) <= {0, 1, 2}
    assert "rocket.jpg (not fitted): labels" in capsys.readouterr().out


def test_expert_example(tmp_path, capsys):
    run("expert", PHOTOGRAPHS / "camera.jpg", PHOTOGRAPHS / "chelsea.jpg", "--out", tmp_path)
    names = ("camera", "chelsea")
    assert written(tmp_path) == {f"{name}_{kind}.png" for name in names for kind in ("mask", "clusters")}
    assert read(tmp_path / "chelsea_mask.png").shape == (300, 451)
    assert capsys.readouterr().out.count("two levels") == 2

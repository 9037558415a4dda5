"""The command `vitnp features --save pca,attention`: pictures, their numbers, the basis, reruns, wrong usage."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import random_vit
from PIL import Image
from safetensors.numpy import save_file

from vitnp import PatchPCA, ViTConfig, load_vit, read_image
from vitnp.cli.features import main
from vitnp.features.extract import extract
from vitnp.io.preprocess import normalize
from vitnp.io.resample import downscale
from vitnp.vit import plain

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """Write a checkpoint so small that the network takes no time."""
    config = ViTConfig(width=64, depth=2, heads=2, patch=8, grid=(4, 4))
    weights = random_vit.random_weights(config, seed=3, hidden=128, class_position=True, dtype=np.float32)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture
def run(model):
    """Return the command with that checkpoint, at a small size."""
    options = ["--model", str(model), "--heads", "2", "--short-side", "32", "--quiet"]
    return lambda *arguments: main([*map(str, arguments), *options])


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Write photographs of several sizes, one of them turned by its EXIF orientation."""
    path = tmp_path / "in"
    path.mkdir()
    for seed, size in enumerate([(56, 40), (40, 64), (33, 47), (56, 40)]):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        exif = Image.Exif()
        exif[ORIENTATION] = 6 if seed == 2 else 1
        Image.fromarray(pixels).save(path / f"{seed}.png", exif=exif)
    return path


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_have_the_size_of_the_upright_photograph(run, folder, tmp_path):
    assert run(folder, "--out", tmp_path / "out", "--save", "pca,attention", "--foreground") == 0
    names = {f"{k}_{kind}.png" for k in range(4) for kind in ("pca", "attention", "attention_head0", "attention_head1")}
    assert contents(tmp_path / "out").keys() == names
    for name in names:
        expected = read_image(folder / f"{name[0]}.png").shape
        assert read_image(tmp_path / "out" / name).shape == expected
    assert read_image(tmp_path / "out" / "2_pca.png").shape == (33, 47, 3)


def test_numbers_are_those_of_the_plain_network(run, folder, model, tmp_path):
    assert run(folder, "--out", tmp_path / "out", "--save", "maps,features", "--dtype", "float32", "--stride", 4) == 0
    vit = load_vit(model, heads=2)
    weights = {name: array.astype(np.float64) for name, array in vit.weights.items()}
    for k in range(4):
        maps, file = np.load(tmp_path / "out" / f"{k}_maps.npz"), np.load(tmp_path / "out" / f"{k}.npz")
        metadata = json.loads(str(maps["metadata"]))
        rgb = read_image(folder / f"{k}.png")
        image = normalize(downscale(rgb, metadata["pixels"]), vit.config.mean, vit.config.std).astype(np.float64)
        expected = plain.features(weights, vit.config, image, layer=1, stride=4)["attention"]
        assert set(maps) == {"attention", "attention_heads", "metadata"}
        np.testing.assert_allclose(maps["attention_heads"].reshape(2, -1), expected, rtol=1e-4)
        np.testing.assert_allclose(maps["attention"].ravel(), expected.mean(axis=0), rtol=1e-4)
        assert np.array_equal(maps["attention"], file["attention"])
        assert metadata["photograph_size"] == list(rgb.shape[:2])


def test_one_basis_for_all_photographs(run, folder, model, tmp_path):
    basis_file = tmp_path / "basis.safetensors"
    arguments = ("--save", "pca,maps", "--dtype", "float32")
    assert run(folder, "--out", tmp_path / "out", "--save-basis", basis_file, *arguments) == 0
    vit, basis = load_vit(model, heads=2), PatchPCA.load(basis_file)
    keys = np.concatenate(
        [extract(read_image(path), vit, short_side=32).keys for path in sorted(folder.iterdir())]
    ).astype(np.float64)
    _, _, components = np.linalg.svd(keys - keys.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs((basis.components_ * components[:3]).sum(axis=1)), 1, rtol=1e-9)
    assert basis.n_samples_ == len(keys)
    projected = (keys - keys.mean(axis=0)) @ basis.components_.T
    percentiles = np.percentile(projected, [1, 99], axis=0, method="inverted_cdf")
    np.testing.assert_allclose(basis.range_, percentiles, atol=1e-3 * projected.std(axis=0).max())
    # Another folder with this basis: the same photograph has the same picture.
    (tmp_path / "one").mkdir()
    (folder / "1.png").rename(tmp_path / "one" / "1.png")
    assert run(tmp_path / "one", "--out", tmp_path / "again", "--basis", basis_file, *arguments) == 0
    assert contents(tmp_path / "again") == {
        name: content for name, content in contents(tmp_path / "out").items() if name.startswith("1_")
    }
    # By itself it would look different.
    assert run(tmp_path / "one", "--out", tmp_path / "alone", *arguments) == 0
    assert contents(tmp_path / "alone")["1_pca.png"] != contents(tmp_path / "out")["1_pca.png"]


def test_same_bits_for_any_threads_batches_order_and_cache(run, folder, tmp_path):
    arguments = ("--save", "pca,attention,maps", "--foreground")
    names = sorted(folder.iterdir())
    assert run(*names, "--out", tmp_path / "a", "--threads", 1, "--batch", 1, *arguments) == 0
    assert run(*names[::-1], "--out", tmp_path / "b", "--threads", 4, "--batch", 3, *arguments) == 0
    assert run(*names, "--out", tmp_path / "c", "--cache", tmp_path / "cache", *arguments) == 0
    assert run(*names, "--out", tmp_path / "d", "--cache", tmp_path / "cache", *arguments) == 0
    expected = contents(tmp_path / "a")
    assert len(expected) == 20 and all(contents(tmp_path / name) == expected for name in "bcd")


def test_rerun_does_only_what_changed(run, folder, tmp_path, capsys):
    def statuses(*more) -> list[str]:
        capsys.readouterr()
        assert run(folder, "--out", tmp_path / "out", "--save", "attention", "--json", *more) == 0
        lines = sorted(map(json.loads, capsys.readouterr().out.splitlines()), key=lambda line: line["photograph"])
        assert all(line["outputs"].keys() == {"attention", "attention_head0", "attention_head1"} for line in lines)
        return [line["status"] for line in lines]

    assert statuses() == ["done"] * 4
    assert statuses() == ["skipped"] * 4
    assert statuses("--nearest") == ["done"] * 4
    (tmp_path / "out" / "2_attention_head0.png").unlink()
    assert statuses("--nearest") == ["skipped", "skipped", "done", "skipped"]
    # What was written is no photograph of the next run.
    assert run(tmp_path / "out", "--save", "attention") == 2


def test_foreign_files_stay_unless_overwritten(run, folder, tmp_path, capsys):
    mine = folder / "0_pca.png"
    Image.new("RGB", (5, 5)).save(mine)
    before = mine.read_bytes()
    assert run(folder / "0.png", "--save", "pca", "--overwrite") == 0  # 0.png_pca.png would be no input
    assert mine.read_bytes() != before
    Image.new("RGB", (5, 5)).save(mine)
    assert run(folder / "0.png", "--save", "pca") == 2
    assert "vitnp did not write it" in capsys.readouterr().err and mine.read_bytes() == before


def test_broken_photographs_are_listed_and_the_others_go_on(run, folder, tmp_path, capsys):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:500])
    assert run(folder, "--out", tmp_path / "out", "--save", "pca") == 3
    err = capsys.readouterr().err
    assert "1 of 5 failed" in err and err.count("cut.png") == 1
    assert len(contents(tmp_path / "out")) == 4
    assert run(folder / "cut.png", "--out", tmp_path / "none", "--save", "pca") == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "none").exists()


def test_a_black_photograph_has_pictures(run, tmp_path):
    Image.new("RGB", (48, 40)).save(tmp_path / "black.png")
    assert run(tmp_path / "black.png", "--save", "pca,attention") == 0
    assert read_image(tmp_path / "black_pca.png").shape == (40, 48, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--save", "poster"], "got poster"),
        (["--save", ""], "got nothing"),
        (["--foreground"], "add --save pca"),
        (["--save", "attention", "--foreground"], "add pca"),
        (["--save", "pca", "--basis", "none.safetensors"], "doesn't exist"),
        (["--save", "pca", "--basis", "b", "--save-basis", "c"], "leave out --save-basis"),
        (["--save", "pca", "--basis", "b", "--foreground", "0"], "leave out --save-basis and --foreground"),
        (["--save", "pca", "--foreground", "90"], "above the threshold"),
        (["--format", "parquet"], "add --mask"),
        (["--instances"], "add --mask"),
        (["--mask", "--basis", "b"], "leave out --mask"),
        (["--mask", "--nearest"], "leave out --mask"),
        (["--masks", "m", "--foreground"], "leave out --masks"),
    ],
)
def test_wrong_usage_is_one_sentence(run, folder, tmp_path, capsys, arguments, named):
    from vitnp import VitnpError

    with pytest.raises(VitnpError, match=named) as caught:
        run(folder, "--out", tmp_path / "out", *arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["most", "nan", "inf", "-inf"])
def test_a_threshold_that_is_no_number_is_refused(run, folder, capsys, value):
    with pytest.raises(SystemExit):
        run(folder, "--save", "pca", f"--foreground={value}")
    assert '--foreground must be a number or "auto"' in capsys.readouterr().err


def test_basis_of_other_features_is_refused(run, folder, tmp_path):
    from vitnp import UsageError

    assert run(folder, "--out", tmp_path / "out", "--save", "pca", "--save-basis", tmp_path / "b.safetensors") == 0
    with pytest.raises(UsageError, match="fitted with the facet key, not token"):
        run(folder, "--out", tmp_path / "o", "--save", "pca", "--basis", tmp_path / "b.safetensors", "--facet", "token")


@pytest.mark.slow(reason="interrupts a running command")
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("arguments", [["--save", "pca,attention"], ["--mask"]])
def test_interrupt_leaves_whole_files(tmp_path, arguments):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for index in range(60):
        Image.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8)).save(tmp_path / "in" / f"{index:02}.bmp")
    command = [sys.executable, "-m", "vitnp.features", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *arguments]
    command += ["--threads", "2", "--short-side", "160", "--cache", str(tmp_path / "cache")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the first photograph is done
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    written = sorted((tmp_path / "out").iterdir())
    assert all(read_image(path).shape == (240, 320, 3) for path in written)
    assert not list(tmp_path.rglob("*.part")) and len(written) < 300
    if arguments == ["--mask"]:
        assert written == []

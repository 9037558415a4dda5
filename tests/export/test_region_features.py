"""The table of regions (`vitnp features --mask`): against the plain network, from own and from given masks."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import random_vit
from PIL import Image, ImageDraw, ImageFilter
from safetensors.numpy import save_file

import vitnp
from vitnp import ImageError, OutputError, UsageError, ViTConfig, load_vit, read_image, region_features
from vitnp.cli.features import main
from vitnp.export.region_maps import classes_of
from vitnp.io.decode import file_hash
from vitnp.io.preprocess import network_size, normalize
from vitnp.io.resample import downscale
from vitnp.method.regions import region_patches
from vitnp.vit import plain


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """Write a checkpoint so small that the network takes no time."""
    config = ViTConfig(width=64, depth=2, heads=2, patch=8, grid=(4, 4))
    weights = random_vit.random_weights(config, seed=3, hidden=128, class_position=True, dtype=np.float32)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def vit(model):
    return load_vit(model, heads=2)


@pytest.fixture
def run(model):
    """Return the command with that checkpoint, at a small size."""
    options = ["--model", str(model), "--heads", "2", "--short-side", "32", "--quiet"]
    return lambda *arguments: main([*map(str, arguments), *options])


@pytest.fixture
def photographs(tmp_path) -> pathlib.Path:
    """Write photographs of bright disks on a dark ground."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 60, (64, 80 + 16 * seed, 3))
        y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
        pixels[(y - 30) ** 2 + (x - 36) ** 2 < 300] += 180
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return folder


def labels_of(size: tuple[int, int]) -> np.ndarray:
    """Return a label image of two classes, 3 and 9, and a border of 255."""
    labels = np.zeros(size, np.uint8)
    labels[8:40, 4:36] = 3
    labels[20:60, 40:70] = 9
    labels[:2] = 255
    return labels


def network_input(vit, rgb: np.ndarray) -> np.ndarray:
    """Return the photograph as the network sees it, (3, height, width) float64."""
    size, _ = network_size(*rgb.shape[:2], short_side=32, patch=8, stride=8, max_tokens=4096)
    return normalize(downscale(rgb, size), vit.config.mean, vit.config.std).astype(np.float64)


def plain_cls(vit, image: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Return the CLS token of a network whose last block has only the CLS token and patches (N,) as tokens, float64."""
    config = vit.config
    w = plain.nest({name: array.astype(np.float64) for name, array in vit.weights.items()})
    x = plain.prepare_tokens(image, w, config, 8)
    for index in range(config.depth):
        of_block = w["blocks"][str(index)]
        if index == config.depth - 1:
            x = x[np.concatenate([[0], 1 + np.flatnonzero(patches)])]
        qkv = plain.linear(plain.norm(x, **of_block["norm1"], eps=config.eps), **of_block["attn"]["qkv"])
        query, key, value = qkv.reshape(len(x), 3, config.heads, -1).transpose(1, 2, 0, 3)  # (heads, tokens, d) each
        weight = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]))
        weight /= weight.sum(axis=2, keepdims=True)
        attended = (weight @ value).transpose(1, 0, 2).reshape(x.shape)
        x = x + plain.linear(attended, **of_block["attn"]["proj"])
        x = x + plain.mlp(plain.norm(x, **of_block["norm2"], eps=config.eps), of_block["mlp"])
    return plain.norm(x, **w["norm"], eps=config.eps)[0]


def test_rows_are_those_of_the_plain_network(vit, photographs, tmp_path):
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        with Image.open(photographs / name) as image:
            Image.fromarray(labels_of((image.height, image.width))).save(masks / name)
    table = region_features(photographs, vit, masks=masks, short_side=32)
    assert len(table) == 6 and table.label.tolist() == table.region.tolist() == [3, 9] * 3
    for row, name in enumerate(np.repeat(["a.png", "b.png", "sub/c.png"], 2)):
        path = photographs / name
        assert table.photograph[row] == str(path) and table.fingerprint[row] == file_hash(path)
        rgb = read_image(path)
        region = labels_of(rgb.shape[:2]) == table.label[row]
        image = network_input(vit, rgb)
        weights = {key: array.astype(np.float64) for key, array in vit.weights.items()}
        key = plain.features(weights, vit.config, image, layer=1, stride=8)["key"]
        grid = vit.grid(*image.shape[1:])
        (patches,) = region_patches(region.astype(np.uint16), grid)
        assert 1 < patches.sum() < patches.size
        np.testing.assert_allclose(table.cls[row], plain_cls(vit, image, patches), atol=5e-3)
        np.testing.assert_allclose(table.feature[row], key[patches].mean(axis=0), atol=2e-3)
        assert table.area[row] == region.sum()
        assert table.box[row].tolist() == [[4, 8, 32, 32], [40, 20, 30, 40]][row % 2]
    assert np.isnan(table.confidence).all()


def test_own_masks_are_those_of_segment_image(vit, photographs):
    table = region_features(photographs, vit, short_side=32, instances=True)
    row = 0
    for name in ("a.png", "b.png", "sub/c.png"):
        result = vitnp.segment_image(photographs / name, vit, short_side=32, instances=True)
        for number, region in enumerate(result.objects, 1):
            assert table.region[row] == number and table.label[row] == 0
            assert table.area[row] == region.area and table.box[row].tolist() == list(region.box)
            assert table.confidence[row] == np.float32(region.confidence)
            patches = region_patches(region.mask.astype(np.uint16), result.keys.shape[:2])[0]
            expected = result.keys.reshape(patches.size, -1)[patches].mean(axis=0)
            np.testing.assert_allclose(table.feature[row], expected, atol=1e-5)
            row += 1
    assert row == len(table) > 0
    whole = region_features([photographs / "a.png"], vit, short_side=32)
    assert whole.area.tolist() == [vitnp.segment_image(photographs / "a.png", vit, short_side=32).mask.sum()]


def test_what_segment_writes_is_read_as_regions(run, model, photographs, tmp_path):
    from vitnp.cli.segment import main as segment

    assert run(photographs, "--mask", "--objects", 2, "--out", tmp_path / "own.npz") == 0
    options = ["--save", "objects", "--objects", "2", "--short-side", "32", "--quiet", "--heads", "2"]
    assert segment([str(photographs), "--out", str(tmp_path / "masks"), "--model", str(model), *options]) == 0
    assert run(photographs, "--masks", tmp_path / "masks", "--out", tmp_path / "given.npz") == 0
    own, given = np.load(tmp_path / "own.npz"), np.load(tmp_path / "given.npz")
    for name in ("photograph", "region", "label", "area", "box"):
        assert np.array_equal(own[name], given[name])
    np.testing.assert_allclose(own["cls"], given["cls"], atol=5e-3)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("a_mask.png", lambda labels: Image.fromarray((labels == 3).view(np.uint8) * 255), [(1, 0)]),
        ("a.png", lambda labels: Image.fromarray((labels == 3).view(np.uint8) * 255), [(1, 0)]),
        ("a.png", lambda labels: Image.fromarray((labels == 3).view(np.uint8)), [(1, 0)]),
        ("a.png", lambda labels: Image.fromarray(labels == 3), [(1, 0)]),
        ("a.png", lambda labels: Image.fromarray(labels), [(3, 3), (9, 9)]),
        ("a.png", lambda labels: Image.fromarray(labels.astype(np.uint16) * 100), [(300, 300), (900, 900)]),
        ("a_objects.png", lambda labels: Image.fromarray(labels % 255), [(3, 0), (9, 0)]),
        ("a.png", lambda labels: Image.fromarray(labels * np.uint8(0)), []),
    ],
)
def test_given_masks(vit, photographs, tmp_path, name, make, expected):
    (tmp_path / "masks").mkdir()
    labels = labels_of((64, 80))
    labels[labels == 255] = 0
    make(labels).save(tmp_path / "masks" / name)
    table = region_features(photographs / "a.png", vit, masks=tmp_path / "masks", short_side=32)
    assert list(zip(table.region.tolist(), table.label.tolist())) == expected
    assert table.cls.shape == table.feature.shape == (len(expected), 64)


@pytest.mark.parametrize("name", ["a.png", "a_mask.png"])
def test_soft_masks_are_refused(vit, photographs, tmp_path, name):
    """An anti-aliased or blurred mask has no labels; as labels it would make a region of each gray."""
    (tmp_path / "masks").mkdir()
    disk = Image.new("L", (320, 256))
    ImageDraw.Draw(disk).ellipse((40, 40, 200, 180), fill=255)
    for soft in (
        disk.resize((80, 64), Image.Resampling.BOX),
        disk.resize((80, 64)).filter(ImageFilter.GaussianBlur(3)),
    ):
        soft.save(tmp_path / "masks" / name)
        with pytest.raises(ImageError, match="looks like a soft mask.*black and white.*a_labels.png"):
            region_features(photographs / "a.png", vit, masks=tmp_path / "masks", short_side=32)


def test_components_of_a_given_mask_are_regions(vit, photographs, tmp_path):
    (tmp_path / "masks").mkdir()
    mask = np.isin(labels_of((64, 80)), (3, 9))
    mask[:, 38] = False
    Image.fromarray(mask.view(np.uint8) * 255).save(tmp_path / "masks" / "a_mask.png")
    table = region_features(photographs / "a.png", vit, masks=tmp_path / "masks", regions="components", short_side=32)
    assert table.region.tolist() == [1, 2] and table.area.tolist() == [1200, 1024]


def test_class_of_an_object_is_that_of_most_of_its_pixels():
    regions = np.array([[1, 1, 1, 2, 2, 0]], np.uint16)
    labels = np.array([[5, 5, 0, 0, 7, 9]], np.uint8)
    assert classes_of(regions, labels, 2).tolist() == [5, 7]
    assert classes_of(regions, None, 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (9, 9)), "9 x 9 pixels, but its photograph has 80 x 64"),
        (Image.new("RGB", (80, 64)), "numbers in a gray or palette picture"),
        (None, "holds no mask of it"),
        (b"no picture", "a.png"),
    ],
)
def test_bad_masks_are_listed_and_the_others_go_on(run, photographs, tmp_path, capsys, image, message):
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    Image.new("L", (96, 64), 255).save(masks / "b.png")
    Image.new("L", (112, 64), 255).save(masks / "sub" / "c.png")
    if isinstance(image, bytes):
        (masks / "a.png").write_bytes(image)
    elif image is not None:
        image.save(masks / "a.png")
    assert run(photographs, "--masks", masks, "--out", tmp_path / "out.npz") == 3
    err = capsys.readouterr().err
    assert "1 of 3 failed" in err and message in err
    assert len(np.load(tmp_path / "out.npz")["region"]) == 2


def test_same_table_for_any_threads_and_cache(run, photographs, tmp_path, capsys):
    arguments = (photographs, "--mask", "--regions", "components")
    assert run(*arguments, "--out", tmp_path / "1.npz", "--threads", 1, "--batch", 1) == 0
    assert run(*arguments, "--out", tmp_path / "2.npz", "--threads", 4, "--cache", tmp_path / "cache") == 0
    assert run(*arguments, "--out", tmp_path / "3.npz", "--cache", tmp_path / "cache", "--json") == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["status"] for line in lines] == ["done"] * 3 + ["written"]
    assert lines[-1]["rows"] == sum(line["regions"] for line in lines[:-1])
    first = (tmp_path / "1.npz").read_bytes()
    assert first == (tmp_path / "2.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()


def test_the_file_is_where_out_says(run, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(photographs, "--mask") == 0
    assert run(photographs, "--mask", "--out", "folder", "--facet", "token") == 0
    assert "key" in np.load("regions.npz") and "token" in np.load("folder/regions.npz")
    with pytest.raises(UsageError, match="must end in .npz or .parquet"):
        run(photographs, "--mask", "--out", "regions.csv")
    assert not pathlib.Path("regions.csv").exists()
    pathlib.Path("mine.npz").write_text("mine")
    with pytest.raises(OutputError, match="vitnp did not write it"):
        run(photographs, "--mask", "--out", "mine.npz")
    assert pathlib.Path("mine.npz").read_text() == "mine"
    assert run(photographs, "--mask", "--out", "mine.npz", "--overwrite") == 0
    assert run(photographs, "--mask", "--out", "mine.npz") == 0  # now it is vitnp's own


def test_parquet_has_the_same_rows(run, photographs, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("table.npz", "table.parquet", "table.parquet"):
        assert run(photographs, "--mask", "--out", tmp_path / name) == 0
    arrays, table = np.load(tmp_path / "table.npz"), parquet.read_table(tmp_path / "table.parquet")
    assert table.column_names == [name for name in arrays if name != "metadata"]
    for name in table.column_names:
        values = table[name].combine_chunks()
        if arrays[name].ndim == 2:
            values = values.flatten()
        assert np.array_equal(values.to_numpy(zero_copy_only=False).reshape(arrays[name].shape), arrays[name])
    assert json.loads(table.schema.metadata[b"vitnp"]) == json.loads(str(arrays["metadata"]))
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="vitnp did not write it"):
        run(photographs, "--mask", "--out", tmp_path / "other.parquet")


def test_without_pyarrow_the_message_names_the_extra(run, photographs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'vitnp\[tables\]'"):
        run(photographs, "--mask", "--format", "parquet", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_photograph_is_an_error_of_the_function_unless_failures_are_collected(vit, photographs):
    (photographs / "cut.png").write_bytes((photographs / "a.png").read_bytes()[:300])
    with pytest.raises(vitnp.ImageError, match=r"cut\.png"):
        region_features(photographs, vit, short_side=32)
    failures: list[Exception] = []
    assert len(region_features(photographs, vit, short_side=32, failures=failures)) >= 3
    assert len(failures) == 1 and "cut.png" in str(failures[0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mask", "--save", "pca"], "leave out --mask"),
        (["--mask", "--prune", "--cache", "c"], "leave out --mask"),
        (["--mask", "--format", "safetensors"], "npz or parquet"),
        (["--mask", "--out", "a.npz", "--format", "parquet"], "rename the file"),
        (["--mask", "--regions", "split"], "image or components"),
        (["--masks", "none"], "must be a folder"),
        (["--masks", "none", "--instances"], "leave out --masks"),
    ],
)
def test_wrong_usage_is_one_sentence(run, photographs, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=named) as caught:
        run(photographs, *arguments)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["in"]

"""`segment_image` and its result: known objects, equal inputs, determinism, odd sizes, pictures without an object."""

from __future__ import annotations

import copy
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from vitnp.kernels.threads.pool import map_ordered

import vitnp
from vitnp import segment_image
from vitnp.errors import ImageError, UsageError
from vitnp.io.stamp import parameters_hash, stamp


def picture_of(path) -> Image.Image:
    """Return the picture in a file, which is closed."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def disc(height: int = 240, width: int = 320, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an orange disc on textured green, and its true mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    truth = (rows - height * 0.5) ** 2 + (columns - width * 0.55) ** 2 < (0.28 * min(height, width)) ** 2
    picture = np.where(truth[..., None], (235, 120, 30), (60, 110, 60)) + rng.normal(0, 8, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8), truth


@pytest.fixture(scope="module")
def result(builtin):
    return segment_image(disc()[0], builtin)


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return (mask & truth).sum() / (mask | truth).sum()


def test_a_disc_is_found_with_its_edge(result):
    picture, truth = disc()
    assert iou(result.mask, truth) > 0.9
    assert result.share == pytest.approx(truth.mean(), abs=0.03)
    np.testing.assert_array_equal(result.image, picture)


def test_types_and_shapes(result, builtin):
    assert result.mask.dtype == bool and result.mask.shape == (240, 320)
    assert result.soft.dtype == np.uint16 and result.soft.shape == (240, 320)
    np.testing.assert_array_equal(result.mask, result.soft >= 32768)
    assert result.score.dtype == np.float32 and result.score.shape == (20, 27)
    assert result.keys.dtype == np.float32 and result.keys.shape == (20, 27, builtin.config.width)
    assert result.score.min() >= 0 and result.score.max() <= 1
    assert 0 <= result.confidence <= 1
    assert set(result.seconds) == {"decode", "network", "cluster", "refine"}
    assert not result.capped


def test_boxes_surround_the_object(result):
    (x, y, width, height), *_ = result.boxes()
    rows, columns = np.nonzero(disc()[1])
    assert abs(x - columns.min()) < 8 and abs(x + width - columns.max()) < 8
    assert abs(y - rows.min()) < 8 and abs(y + height - rows.max()) < 8


def test_pictures(result):
    overlay, cutout = result.overlay(), result.cutout()
    assert overlay.mode == "RGB" and cutout.mode == "RGBA"
    assert overlay.size == cutout.size == (320, 240)
    visible = np.asarray(cutout)[..., 3] >= 128
    assert not (visible & ~result.mask).any()
    assert (result.mask & ~visible).mean() < 0.02  # specks, and what shows background at the edge


def test_results_can_be_pickled_and_copied(result):
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        np.testing.assert_array_equal(other.mask, result.mask)
        assert other.parameters == result.parameters and other.stamp == result.stamp


def test_results_are_shown_in_one_line_and_as_an_overlay(result):
    assert repr(result) == f"Segmentation(320 x 240, foreground {result.share:.0%}, confidence {result.confidence:.2f})"
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(result.overlay()))


def test_path_picture_and_array_agree(tmp_path, builtin, result):
    picture, _ = disc()
    Image.fromarray(picture).save(tmp_path / "disc.png")
    for source in (tmp_path / "disc.png", str(tmp_path / "disc.png"), Image.fromarray(picture)):
        np.testing.assert_array_equal(segment_image(source, builtin).soft, result.soft)


def test_same_bits_in_any_order_and_for_any_number_of_threads(builtin, result):
    pictures = [disc(seed=seed)[0] for seed in (3, 0, 5, 0)]
    for threads in (1, 3):
        found = list(map_ordered(lambda picture: segment_image(picture, builtin), pictures, threads))
        for same in (found[1], found[3]):
            np.testing.assert_array_equal(same.soft, result.soft)
            np.testing.assert_array_equal(same.score, result.score)
            assert same.confidence == result.confidence


def test_seed_reaches_the_clusters(builtin):
    scores = [segment_image(disc()[0], builtin, seed=seed, refine="none").score for seed in (0, 0, 1)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (9, 300), (2000, 10), (50, 61)])
def test_small_and_thin_pictures(builtin, shape):
    picture, _ = disc(*shape)
    found = segment_image(picture, builtin, max_tokens=600)
    assert found.mask.shape == shape
    assert np.isfinite(found.confidence)


def test_token_cap_is_reported(builtin):
    found = segment_image(disc(40, 3000)[0], builtin, max_tokens=500)
    assert found.capped and found.score.size <= 500 and found.mask.shape == (40, 3000)


@pytest.mark.parametrize(
    "options", [{"facet": "token"}, {"facet": "value", "layer": 2}, {"stride": 8, "short_side": 160}, {"layer": -2}]
)
def test_other_features_find_the_disc_too(builtin, options):
    picture, truth = disc()
    assert iou(segment_image(picture, builtin, **options).mask, truth) > 0.5


@pytest.mark.parametrize("method", ["solver", "guided", "none"])
def test_refinements(builtin, method):
    picture, truth = disc()
    assert iou(segment_image(picture, builtin, refine=method).mask, truth) > (0.75 if method == "none" else 0.85)


@pytest.mark.parametrize(
    "options",
    [{"refine": "magic"}, {"facet": "color"}, {"layer": 99}, {"stride": 5}, {"short_side": 0}, {"max_tokens": 0}],
)
def test_wrong_options_are_named(builtin, options):
    with pytest.raises(UsageError) as error:
        segment_image(disc(32, 32)[0], builtin, **options)
    assert str(next(iter(options.values()))) in str(error.value)


def test_unreadable_photograph(tmp_path, builtin):
    (tmp_path / "a.jpg").write_bytes(b"not a picture at all, however long this text may be")
    with pytest.raises(ImageError, match=r"a\.jpg"):
        segment_image(tmp_path / "a.jpg", builtin)


def test_low_confidence_empties_the_mask(builtin, result):
    found = segment_image(disc()[0], builtin, min_confidence=1.0)
    assert not found.mask.any() and found.boxes() == []
    assert found.confidence == result.confidence
    assert segment_image(disc()[0], builtin, min_confidence=result.confidence).mask.any()


def test_a_few_pixels_are_no_object(builtin, monkeypatch):
    picture = np.zeros((100, 200, 3), np.uint8)
    for pixels, found in ((19, 0), (20, 20)):
        soft = np.zeros((100, 200), np.uint16)
        soft[0, :pixels] = 40_000
        monkeypatch.setattr("vitnp.from_features.refine_batch", lambda *args, soft=soft, **options: [soft])
        result = segment_image(picture, builtin, short_side=96, collection=None)
        assert result.mask.sum() == found and result.soft.any() == bool(found)


def test_save_writes_everything_with_a_stamp(tmp_path, result):
    kinds = ("mask", "overlay", "cutout", "soft", "score", "keys", "npz")
    paths = result.save(tmp_path / "deep" / "disc", kinds)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == sorted(path.name for path in paths.values())
    for path in paths.values():
        assert stamp(path) == {
            "vitnp:parameters": parameters_hash(result.parameters),
            "vitnp:photograph": result.photograph,
        }
    mask = np.asarray(picture_of(paths["mask"]))
    np.testing.assert_array_equal(mask, np.where(result.mask, 255, 0))
    np.testing.assert_array_equal(np.asarray(picture_of(paths["soft"])), result.soft)
    np.testing.assert_array_equal(np.load(paths["score"]), result.score)
    np.testing.assert_array_equal(np.load(paths["keys"]), result.keys)
    with np.load(paths["npz"]) as stored:
        np.testing.assert_array_equal(stored["mask"], result.mask)
        np.testing.assert_array_equal(stored["keys"], result.keys)
        metadata = json.loads(str(stored["metadata"]))
    assert metadata["model"] == "vitnp_tiny" and metadata["seed"] == 0 and metadata["version"] == vitnp.__version__
    assert len(metadata["sha256"]) == 64 and metadata["size"] == 320


def test_npz_holds_keys_only_when_they_are_named(tmp_path, result):
    with np.load(result.save(tmp_path / "disc", ["npz"])["npz"]) as stored:
        assert set(stored) == {"mask", "score", "metadata"}


def test_unknown_output_is_named_before_anything_is_written(tmp_path, result):
    with pytest.raises(UsageError, match="poster"):
        result.save(tmp_path / "disc", ["mask", "poster"])
    assert not list(tmp_path.iterdir())


def featureless() -> dict[str, np.ndarray]:
    """Return pictures without an object, by name."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:320, :448]
    gray = {
        "uniform": np.full((320, 448), 128.0),
        "black": np.zeros((320, 448)),
        "white": np.full((320, 448), 255.0),
        "gradient across": columns / 447 * 255,
        "gradient down": rows / 319 * 255,
        "diagonal gradient": (rows + columns) / 766 * 255,
        "noise": rng.uniform(0, 255, (320, 448)),
        "weak noise": 128 + rng.normal(0, 10, (320, 448)),
        "stripes": 128 + 100 * np.sin(columns / 5),
        "checks": 255.0 * ((rows // 16 + columns // 16) % 2),
        "bricks": np.where((rows % 20 < 2) | ((columns + 20 * (rows // 20 % 2)) % 40 < 2), 200.0, 120.0),
    }
    pictures = {name: np.repeat(values[..., None], 3, axis=2).astype(np.uint8) for name, values in gray.items()}
    pictures["colored noise"] = rng.integers(0, 256, (320, 448, 3), dtype=np.uint8)
    return pictures


@pytest.fixture(scope="module", params=["vit_tiny", "builtin"])
def photographs(request, shared):
    """Return a network, and its confidence and IoU with the true mask for every other photograph of a set."""
    vit = request.getfixturevalue(request.param)
    folder = shared / "data" / "duts-dev"
    found = []
    for path in sorted((folder / "images").iterdir())[::2]:
        truth = np.asarray(picture_of(folder / "masks" / f"{path.stem}.png").convert("L")) > 127
        result = segment_image(path, vit)
        found.append((result.confidence, iou(result.mask, truth)))
    return request.param, vit, np.array(found)


@pytest.mark.slow(reason="segments dozens of pictures")
def test_pictures_without_an_object_have_less_confidence_than_photographs(photographs):
    _, vit, found = photographs
    limit = np.quantile(found[:, 0], 0.05)
    confidence = {
        name: segment_image(picture, vit, refine="none").confidence for name, picture in featureless().items()
    }
    assert {name: value for name, value in confidence.items() if value >= limit} == {}, f"5th percentile {limit:.3f}"


@pytest.mark.slow(reason="segments twenty photographs")
def test_masks_of_photographs_with_known_objects(photographs):
    # The whole set, three seeds: 0.820 and 0.803. This half is a little harder; without the solver it stays below 0.75.
    network, _, found = photographs
    assert found[:, 1].mean() > {"vit_tiny": 0.79, "builtin": 0.77}[network], found[:, 1].mean()


def test_bytes_in_memory_are_refused_clearly(builtin):
    with pytest.raises(ImageError):
        segment_image(io.BytesIO(b"abc"), builtin)

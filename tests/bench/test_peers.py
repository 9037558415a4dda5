"""The peers on features with a planted object, their table, and the composites of two photographs."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

# bench/ is not installed. It is appended, so that an installed vitnp stays the one that is tested.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent))

from bench import record
from bench.quality import composites, peers, unequal
from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.label_images import read_label_folder
from vitnp.features.record import FeatureRecord
from vitnp.io.find import find_photographs

GRID = (12, 16)


def planted(noise=0.1, seed=0):
    """Keys and CLS attention by head: an object of 24 patches before a background that it opposes a little."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(GRID, bool)
    truth[4:8, 6:12] = True
    object_key, ground_key = np.zeros((2, 24))
    object_key[0] = ground_key[1] = 1
    object_key[1] = -0.3
    keys = np.where(truth.ravel()[:, None], object_key, ground_key) + noise * rng.standard_normal((truth.size, 24))
    # The first head looks at the object, the others hardly anywhere.
    attention = np.where(truth.ravel(), [[8.0], [2.0], [1.5]], [[1.0], [0.9], [0.8]])
    attention = attention + 0.01 * rng.random((3, truth.size))
    return (10 * keys).astype(np.float32), attention / attention.sum(), truth


def everyone(keys, attention, grid=GRID):
    return {
        "lost": peers.lost(keys, grid),
        "tokencut": peers.tokencut(keys, grid),
        "deep spectral": peers.deep_spectral(keys, grid),
        "found": peers.found(keys, attention, grid),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["lost", "tokencut", "deep spectral", "found"])
def test_every_peer_finds_the_planted_object(name, seed):
    keys, attention, truth = planted(seed=seed)
    mask = everyone(keys, attention)[name]
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, truth)


@pytest.mark.parametrize("name", ["lost", "tokencut", "found", "deep spectral"])
def test_every_peer_is_invariant_to_the_scale_of_keys(name):
    keys, attention, _ = planted(noise=0.4)
    np.testing.assert_array_equal(everyone(keys, attention)[name], everyone(4 * keys, attention)[name])


def test_lost_and_tokencut_keep_the_component_around_their_seed():
    keys, attention, truth = planted(noise=0.02)
    keys = keys.reshape(*GRID, -1)
    # A second object of the same kind, apart from the first and touching it at a corner only.
    keys[8:10, 12:14] = keys[4, 6]
    keys = keys.reshape(-1, keys.shape[-1])
    both = truth.copy()
    both[8:10, 12:14] = True
    found = everyone(keys, attention)
    for name in ("deep spectral", "found"):
        np.testing.assert_array_equal(found[name], both)
    for name in ("lost", "tokencut"):
        assert any(np.array_equal(found[name], part) for part in (truth, both & ~truth))


def test_deep_spectral_takes_the_smaller_side():
    keys, _, truth = planted()
    swapped = keys.copy()
    swapped[:, [0, 1]] = keys[:, [1, 0]]
    np.testing.assert_array_equal(peers.deep_spectral(swapped, GRID), truth)


def test_found_weights_heads_that_attend_to_few_patches():
    keys, _, truth = planted(noise=0.05)
    # The patch with the least attention, heads weighted, lies on what we called the object: so all else is foreground.
    attention = np.full((3, truth.size), 1.0)
    attention[:, np.flatnonzero(truth)[3]] = 0.1
    attention[1, :5] = 9.0
    np.testing.assert_array_equal(peers.found(keys, attention, GRID), ~truth)


def test_second_eigenvector_by_hand():
    # A path of three nodes with edges 1, loops 0: eigenvalues 0, 1, 2 with D; the second is (1, 0, -1).
    affinity = np.array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    vector = peers.second_eigenvector(affinity)
    np.testing.assert_allclose(vector / vector[0], [1, 0, -1], atol=1e-12)


def test_second_eigenvector_separates_the_components_of_a_graph():
    parts = np.kron(np.eye(2), np.ones((3, 3)))
    vector = peers.second_eigenvector(parts)
    np.testing.assert_allclose(vector / vector[0], [1, 1, 1, -1, -1, -1], atol=1e-12)


def test_second_eigenvector_solves_its_equation():
    rng = np.random.default_rng(0)
    affinity = rng.random((30, 30))
    affinity += affinity.T
    degree = np.diag(affinity.sum(axis=1))
    vector = peers.second_eigenvector(affinity)
    eigenvalues = np.sort(np.linalg.eigvals(np.linalg.solve(degree, degree - affinity)).real)
    np.testing.assert_allclose((degree - affinity) @ vector, eigenvalues[1] * degree @ vector, atol=1e-10)
    assert np.abs(vector).max() > 1e-3


def test_outliers_are_repaired_from_valid_neighbors():
    keys, _, _ = planted()
    damaged = keys.reshape(*GRID, -1).copy()
    damaged[0, 0] *= 1e-3  # a corner, whose sound neighbors are two: the third is damaged too
    damaged[1, 1] *= 1e-3
    repaired = peers.repair_outliers(damaged.reshape(keys.shape), GRID).reshape(damaged.shape)
    np.testing.assert_allclose(repaired[0, 0], damaged[[0, 1], [1, 0]].mean(axis=0), rtol=1e-5)
    around = [damaged[i, j] for i in range(3) for j in range(3) if (i, j) not in ((0, 0), (1, 1))]
    np.testing.assert_allclose(repaired[1, 1], np.mean(around, axis=0), rtol=1e-5)
    others = np.ones(GRID, bool)
    others[[0, 1], [0, 1]] = False
    np.testing.assert_array_equal(repaired[others], damaged[others])
    assert peers.repair_outliers(keys, GRID) is keys


def test_peers_fail_on_outliers_without_the_repair():
    keys, attention, truth = planted(noise=0.05)
    damaged = keys.copy()
    damaged[5] = -0.01 * keys.mean(axis=0)  # small, and unlike everything
    assert np.array_equal(np.flatnonzero(peers.lost(damaged, GRID)), [5])
    repaired = peers.repair_outliers(damaged, GRID)
    for name, mask in everyone(repaired, attention).items():
        np.testing.assert_array_equal(mask, truth, err_msg=name)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (3, 4)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features_are_handled(grid, value):
    keys = np.full((grid[0] * grid[1], 6), value, np.float32)
    attention = np.full((3, len(keys)), 1 / len(keys))
    with np.errstate(all="raise"):
        found = everyone(peers.repair_outliers(keys, grid), attention, grid)
    assert all(mask.shape == grid and mask.dtype == bool for mask in found.values())
    if value:
        # One thing everywhere: LOST takes it for the object, FOUND for the background.
        assert found["lost"].all() and not found["found"].any()


def test_a_single_head_has_weight_one():
    keys, attention, truth = planted()
    np.testing.assert_array_equal(peers.found(keys, attention[:1], GRID), truth)


def test_scores_of_all_methods():
    keys, attention, truth = planted()
    arrays = {"keys": keys, "attention": attention.mean(axis=0).astype(np.float32)}
    features = FeatureRecord("", GRID, (192, 256), (192, 256), 1, False, arrays.copy)
    scores = peers.scores_of(features, attention)
    assert len(scores) == 3 + len(peers.TOKENCUT_THRESHOLDS) + len(peers.FOUND_THRESHOLDS)
    for score in scores.values():
        assert score.shape == GRID and score.dtype == np.float32 and 0 <= score.min() <= score.max() <= 1
    np.testing.assert_array_equal(scores["vitnp, image level"] > 0.5, truth)


def test_table_shows_published_and_best_thresholds():
    row = {"LOST": 0.1, "vitnp, image level": 0.9}
    row |= {f"TokenCut, {threshold}": 0.5 - threshold / 10 for threshold in peers.TOKENCUT_THRESHOLDS}
    row |= {f"FOUND coarse, {threshold}": threshold / 2 for threshold in peers.FOUND_THRESHOLDS}
    best = peers.FOUND_THRESHOLDS[-1]
    table = peers.table([row, row])
    assert list(table) == [
        "LOST",
        "FOUND coarse, threshold 0.3 as published",
        f"FOUND coarse, threshold {best}, best of {len(peers.FOUND_THRESHOLDS)} here",
        "TokenCut, threshold 0.2 as published",
        "vitnp, image level",
    ]
    assert table["TokenCut, threshold 0.2 as published"] == pytest.approx(0.48)


@pytest.fixture
def scene(tmp_path):
    """Two photographs of a bright disc on a dark ground, with masks, and one that can't be read."""
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    y, x = np.mgrid[:96, :128]
    for number, center in enumerate((48, 80)):
        disc = (y - 48) ** 2 + (x - center) ** 2 < 30**2
        rgb = np.where(disc[..., None], [230, 120, 40], [30, 60, 90]).astype(np.uint8)
        Image.fromarray(rgb).save(tmp_path / "set" / "images" / f"{number}.png")
        Image.fromarray(disc).save(tmp_path / "set" / "masks" / f"{number}.png")
    return tmp_path / "set"


def run(scene, monkeypatch, *options):
    monkeypatch.setattr(record, "RESULTS", scene.parent / "results")
    return peers.main([str(scene / "images"), str(scene / "masks"), "--quiet", "--short-side", "96", *options])


class TrueMasks:
    """A Segmenter whose masks are the true ones; it expects the options of the command."""

    options: ClassVar = {"short_side": 96, "seed": 0, "refine": "solver"}

    def __init__(self, vit, *, n_threads, **options):
        assert options == self.options

    def fit(self, photographs):
        masks = [photograph.parents[1] / "masks" / f"{photograph.stem}.png" for photograph in photographs]
        self.masks = [np.asarray(Image.open(mask)) for mask in masks]
        return self


def test_the_command(scene, monkeypatch, capsys):
    monkeypatch.setattr(peers, "Segmenter", TrueMasks)
    assert run(scene, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "2 photographs" in printed and "solver" in printed
    assert next(line for line in printed.splitlines() if "three levels" in line).endswith("1.000")
    stored = json.loads((scene.parent / "results" / "peers-set.json").read_text())
    assert {"machine", "vitnp", "model", "sha256", "iou"} <= set(stored)
    assert stored["refine"] == "solver" and stored["iou"].pop("vitnp, three levels") == 1.0
    means = list(stored["iou"].values())
    assert means == sorted(means) and all(0 <= value <= 1 for value in means)


def test_the_command_in_json_with_a_broken_photograph(scene, monkeypatch, capsys):
    monkeypatch.setattr(TrueMasks, "options", {"short_side": 96, "seed": 3, "refine": "none"})
    monkeypatch.setattr(peers, "Segmenter", TrueMasks)
    (scene / "images" / "broken.png").write_bytes(b"no picture")
    Image.new("1", (8, 8)).save(scene / "masks" / "broken.png")
    assert run(scene, monkeypatch, "--json", "--refine", "none", "--seed", "3", "--name", "discs") == 3
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["images"] == 2 and result["iou"]["vitnp, three levels"] == 1.0
    assert "broken.png" in err
    assert (scene.parent / "results" / "peers-discs.json").is_file()


def test_the_command_with_nothing_to_score(scene, monkeypatch):
    for photograph in (scene / "images").iterdir():
        photograph.write_bytes(b"no picture")
    with pytest.raises(UsageError, match="none of the 2"):
        run(scene, monkeypatch)


# --- Composites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_pairs_mix_categories_and_use_each_photograph_once(seed):
    categories = ["a"] * 5 + ["b"] * 2 + ["c"] * 3 + ["d"]
    pairs = composites.choose_pairs(categories, None, seed)
    used = [index for pair in pairs for index in pair]
    assert len(pairs) == 5 and len(set(used)) == 10
    assert all(categories[left] != categories[right] for left, right in pairs)
    assert pairs == composites.choose_pairs(categories, None, seed)
    assert pairs != composites.choose_pairs(categories, None, seed + 100)
    assert len(composites.choose_pairs(categories, 2, seed)) == 2


def test_impossible_numbers_of_pairs_raise():
    with pytest.raises(UsageError, match="1 pairs.*not 2"):
        composites.choose_pairs(["a", "b", "a"], 2, 0)
    for categories in (["a", "a"], []):
        with pytest.raises(UsageError, match="0 pairs"):
            composites.choose_pairs(categories, None, 0)


def test_side_by_side_scales_to_the_lower_height():
    tall = np.full((8, 4, 3), 200, np.uint8), np.repeat([[1], [0]], 4, axis=0).repeat(4, axis=1).astype(np.uint8)
    low = np.full((4, 6, 3), 50, np.uint8), np.full((4, 6), 2, np.uint8)
    photograph, labels = composites.side_by_side(tall, low)
    assert photograph.shape == (4, 8, 3)
    np.testing.assert_array_equal(photograph[..., 0], [[200] * 2 + [50] * 6] * 4)
    np.testing.assert_array_equal(labels, [[1, 1] + [2] * 6] * 2 + [[0, 0] + [2] * 6] * 2)


def test_composites_are_a_set_that_can_be_read(tmp_path):
    for rank, category in enumerate(("Cat", "Dog"), 1):
        for folder in ("images", "masks"):
            (tmp_path / folder / category).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20 + rank, 16), (50 * rank, 0, 0)).save(tmp_path / "images" / category / f"{number}.png")
            Image.fromarray(np.eye(16, 20 + rank) > 0).save(tmp_path / "masks" / category / f"{number}.png")
    arguments = [str(tmp_path / "images"), str(tmp_path / "masks"), "--quiet", "--out"]
    for out in ("one", "two"):
        assert composites.main([*arguments, str(tmp_path / "sets" / out)]) == 0
    made = tmp_path / "sets" / "one"
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*.*"))
    assert files == ["classes.txt", "images/0001.png", "images/0002.png", "labels/0001.png", "labels/0002.png"]
    for file in files:
        assert (made / file).read_bytes() == (tmp_path / "sets" / "two" / file).read_bytes()
    # They are taken as photographs, although vitnp made them.
    assert len(find_photographs([made / "images"])) == 2
    found = read_label_folder(made / "images", made / "labels", names=made / "classes.txt")
    assert found.classes == ("background", "Cat", "Dog")
    for sample in found.samples:
        assert set(np.unique(sample.load_truth((16, 43)))) == {0, 1, 2}
    with pytest.raises(UsageError, match="already"):
        composites.main([*arguments, str(made)])


def test_composites_leave_nothing_behind_when_they_fail(tmp_path):
    for category in ("Cat", "Dog"):
        for folder in ("images", "masks"):
            (tmp_path / folder / category).mkdir(parents=True)
            (tmp_path / folder / category / "1.png").write_bytes(b"no picture")
    arguments = [str(tmp_path / "images"), str(tmp_path / "masks"), "--quiet", "--out", str(tmp_path / "out" / "set")]
    with pytest.raises(ImageError):
        composites.main(arguments)
    assert list((tmp_path / "out").iterdir()) == []


# --- Sets of classes of unequal sizes ---------------------------------------------------------------------------------


def test_a_subset_has_classes_of_sizes_in_equal_ratios():
    categories = [name for name in "abcd" for _ in range(30)]
    chosen = unequal.draw_subset(categories, 3, 24, seed=0)
    assert chosen == sorted(set(chosen)) == unequal.draw_subset(categories, 3, 24, seed=0)
    counts = [sum(categories[index] == name for index in chosen) for name in "abcd"]
    assert sorted(counts) == [3, 6, 12, 24]
    others = [unequal.draw_subset(categories, 3, 24, seed=seed) for seed in range(1, 9)]
    assert any([sum(categories[index] == name for index in each) for name in "abcd"] != counts for each in others)
    assert all(each != chosen for each in others)


def test_a_class_with_too_few_photographs_keeps_all():
    assert len(unequal.draw_subset(["a"] * 5 + ["b"] * 40, 20, 20, seed=0)) == 25

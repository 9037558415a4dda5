"""Segmenter: collections of planted scenes, small enough to be quick."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading

import numpy as np
import pytest
import random_vit
from PIL import Image

from vitnp import Segmenter, ViT, ViTConfig
from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.readout import ReadoutConfig
from vitnp.method.regions import RegionRule

# A red square, a green disc with stripes, a blue triangle with checks.
COLORS = [(230, 40, 40), (40, 220, 60), (70, 90, 250)]


def planted(seed: int, kind: int | None = None, size: tuple[int, int] = (96, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Return an object of one kind on gray noise, near the middle, and its true mask."""
    rng = np.random.default_rng(seed)
    kind = seed % 3 if kind is None else kind
    ground = rng.normal(110, 10, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]]
    radius = min(size) * rng.uniform(0.28, 0.34)
    dy, dx = ((axis - side * rng.uniform(0.4, 0.6)) / radius for axis, side in zip((y, x), size))
    shapes = [np.maximum(abs(dy), abs(dx)) < 1, dy**2 + dx**2 < 1, (abs(dx) < 0.6 * (dy + 1)) & (abs(dy) < 1)]
    white = [np.zeros(size, bool), x // 6 % 2 == 1, (x // 6 + y // 6) % 2 == 1]
    thing = np.where(white[kind][..., None], 250, COLORS[kind]) + rng.normal(0, 6, ground.shape)
    return np.where(shapes[kind][..., None], thing, ground).clip(0, 255).astype(np.uint8), shapes[kind]


def scene(seed: int, kind: int | None = None, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    return planted(seed, kind, size)[0]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b))


def answers(segmenter: Segmenter) -> list[np.ndarray | None]:
    return [*segmenter.labels, segmenter.confidences, segmenter.categories]


def assert_same(one: Segmenter, other: Segmenter) -> None:
    for mine, theirs in zip(answers(one), answers(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert one.collection.digest == other.collection.digest


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [scene(seed) for seed in range(15)]


@pytest.fixture(scope="module")
def fitted(builtin, scenes) -> Segmenter:
    return Segmenter(builtin, 3, short_side=96, n_categories=2, n_threads=2).fit(scenes)


# --- Results ----------------------------------------------------------------------------------------------------------


def test_planted_classes_are_found(fitted, scenes):
    found = [int(regions.classes[0]) for regions in fitted.regions]
    assert len(set(found)) == 3
    for kind in range(3):
        assert len({found[index] for index in range(15) if index % 3 == kind}) == 1
    for index, (image, labels, mask, label) in enumerate(zip(scenes, fitted.labels, fitted.masks, found)):
        assert iou(mask, planted(index)[1]) > 0.5  # a patch is a sixth of the picture
        assert labels.shape == mask.shape == image.shape[:2] and labels.dtype == np.uint8 and mask.dtype == bool
        np.testing.assert_array_equal(labels, mask * (label + 1))


def test_regions_agree_with_masks_and_confidences(fitted):
    for index, regions in enumerate(fitted.regions):
        assert regions.classes.shape == regions.scores.shape == regions.typical.shape == regions.sizes.shape == (1,)
        assert 0 < regions.scores[0] <= fitted.confidences[index] + 1e-6
        assert 0.3 < regions.typical[0] <= 1 + 1e-6
        np.testing.assert_array_equal(fitted.region_map(index), fitted.masks[index])
    assert len(fitted.masks) == len(fitted.labels) == 15
    np.testing.assert_array_equal(fitted.masks[-1], fitted.masks[14])
    assert len(fitted.labels[3:6]) == 3
    with pytest.raises(IndexError):
        fitted.masks[15]


def test_prediction_of_what_was_fitted_is_nearly_the_same(fitted, scenes):
    # Nearly: features pass through float16, and a photograph may be nearer to another category's center.
    for index in (0, 4, 8):
        result = fitted.predict(scenes[index])
        assert iou(result.mask, fitted.masks[index]) > 0.95
        assert set(np.unique(result.labels)) == set(np.unique(fitted.labels[index]))
        assert result.confidence == pytest.approx(fitted.confidences[index], abs=1e-3)


def test_new_photographs_join_the_class_of_similar_ones(fitted):
    for kind in range(3):
        labels = fitted.predict(scene(100 + kind, kind)).labels
        assert set(np.unique(labels)) == {0, int(fitted.regions[kind].classes[0]) + 1}


@pytest.mark.parametrize("facet, regions", [("key", "image"), ("key_rotated", "split")])
def test_a_network_with_rotary_positions_finds_classes(scenes, facet, regions):
    # Its regions need the places of their patches, which overlap here and lie on grids of two shapes.
    config = ViTConfig(width=48, depth=2, heads=3, patch=8, grid=(4, 4), registers=2, eps=1e-5, rotary=True)
    weights = random_vit.random_weights(config, seed=1, hidden=64, class_position=False, dtype=np.float32)
    images = [*scenes[:4], scene(4, size=(128, 96))]
    segmenter = Segmenter(ViT(config, weights), 2, facet=facet, stride=4, short_side=64, regions=regions)
    fitted = segmenter.fit(images)
    for index, labels in enumerate(fitted.labels):
        result = fitted.predict(images[index])
        assert set(np.unique(labels)) | set(np.unique(result.labels)) <= {0, 1, 2}
        assert iou(result.mask, fitted.masks[index]) > 0.9


def test_without_classes_labels_are_the_masks(builtin, scenes):
    fitted = Segmenter(builtin, short_side=96).fit(scenes[:3])
    assert fitted.regions == [None] * 3 and fitted.collection.prototypes is None
    for labels, mask in zip(fitted.labels, fitted.masks):
        np.testing.assert_array_equal(labels, mask)
    assert fitted.predict(scenes[0]).labels is None
    assert set(fitted.seconds) == {"features", "image level", "categories", "levels", "readout", "masks"}


def test_observers_get_the_results_that_are_kept(builtin, scenes):
    seen, lock = {}, threading.Lock()

    def observe(index, result):
        with lock:
            seen[index] = result.mask.copy(), result.category, result.confidence

    fitted = Segmenter(builtin, short_side=96, n_categories=2, n_threads=2).fit(scenes[:6], observe=observe)
    assert sorted(seen) == list(range(6))
    for index, (mask, category, confidence) in seen.items():
        np.testing.assert_array_equal(mask, fitted.masks[index])
        assert (category, confidence) == (fitted.categories[index], fitted.confidences[index])


@pytest.mark.slow(reason="fits several collections")
def test_components_and_split(builtin):
    pair = [np.concatenate([scene(seed, seed % 3), scene(seed + 50, (seed + 1) % 3)], axis=1) for seed in range(6)]
    for how in ("components", "split"):
        rule = RegionRule(how, certainty=0.5, half=0.1)
        fitted = Segmenter(builtin, 3, short_side=96, regions=rule).fit([*map(scene, range(6)), *pair])
        for index, regions in enumerate(fitted.regions):
            numbers, labels = fitted.region_map(index), fitted.labels[index]
            np.testing.assert_array_equal(numbers > 0, fitted.masks[index])
            assert numbers.max(initial=0) <= len(regions.classes)
            for number, label in enumerate(regions.classes, 1):
                assert set(np.unique(labels[numbers == number])) <= {int(label) + 1}
        assert max(len(regions.classes) for regions in fitted.regions) > 1
        predicted = fitted.predict(pair[0])
        np.testing.assert_array_equal(predicted.labels > 0, predicted.mask)


# --- The same answer --------------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="fits several collections")
def test_threads_cache_and_runs_change_nothing(builtin, scenes, fitted, tmp_path):
    again = Segmenter(builtin, 3, short_side=96, n_categories=2, n_threads=1).fit(scenes)
    assert_same(fitted, again)
    for _ in range(2):  # filled, then read
        assert_same(
            fitted,
            Segmenter(builtin, 3, short_side=96, n_categories=2, n_threads=3, cache=tmp_path / "cache").fit(scenes),
        )


def test_order_leaves_the_image_level_alone(builtin, scenes, fitted):
    order = np.random.default_rng(0).permutation(15)
    found = {}
    shuffled = Segmenter(builtin, 3, short_side=96, n_categories=2)
    shuffled.fit([scenes[index] for index in order], observe=found.__setitem__)
    for place in (0, 7, 14):
        own = fitted.predict(scenes[order[place]]).levels[0]
        np.testing.assert_allclose(found[place].levels[0], own, atol=1e-3)  # kept in half precision
    for place, index in enumerate(order):
        assert iou(shuffled.masks[place], fitted.masks[index]) > 0.9


def test_files_arrays_and_pictures_give_the_same_masks(builtin, scenes, tmp_path):
    for index, image in enumerate(scenes[:4]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    mixed = [str(tmp_path / "0.png"), scenes[1], Image.fromarray(scenes[2]), tmp_path / "3.png"]
    one, other = (Segmenter(builtin, 2, short_side=96).fit(photographs) for photographs in (mixed, scenes[:4]))
    assert_same(one, other)


def test_seed_matters(builtin):
    noisy = [np.random.default_rng(seed).integers(0, 255, (96, 96, 3), np.uint8) for seed in range(4)]
    one, other = (Segmenter(builtin, short_side=96, seed=seed).fit(noisy) for seed in (0, 1))
    assert one.collection.digest != other.collection.digest
    assert not np.array_equal(one.confidences, other.confidences)


# --- Small and odd collections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_few_photographs(builtin, scenes, count):
    fitted = Segmenter(builtin, 1, short_side=96).fit(scenes[:count])
    assert fitted.categories.tolist() == [0] * count
    assert all(set(np.unique(labels)) == {0, 1} for labels in fitted.labels)
    assert iou(fitted.predict(scenes[0]).mask, fitted.masks[0]) > 0.95


def test_more_categories_than_photographs(builtin, scenes):
    fitted = Segmenter(builtin, short_side=96, n_categories=50).fit(scenes[:3])
    assert sorted(fitted.categories) == [0, 1, 2] and len(fitted.collection.categories) == 3


def test_more_classes_than_regions_is_an_error(builtin, scenes):
    with pytest.raises(UsageError, match="at most the number of regions, 3 in 3 photographs, got 4"):
        Segmenter(builtin, 4, short_side=96).fit(scenes[:3])


def test_as_many_classes_as_photographs(builtin, scenes):
    fitted = Segmenter(builtin, 3, short_side=96).fit(scenes[:3])
    assert sorted(int(regions.classes[0]) for regions in fitted.regions) == [0, 1, 2]


def test_identical_photographs(builtin, scenes, tmp_path):
    fitted = Segmenter(builtin, 2, short_side=96, n_categories=3).fit([scenes[0]] * 5)
    assert set(fitted.categories) == {0} and {int(regions.classes[0]) for regions in fitted.regions} == {0}
    for mask in fitted.masks:
        np.testing.assert_array_equal(mask, fitted.masks[0])
    fitted.save(tmp_path / "f")
    np.testing.assert_array_equal(
        Segmenter.load(tmp_path / "f", builtin).predict(scenes[0]).labels, fitted.predict(scenes[0]).labels
    )


def test_different_sizes_down_to_one_patch(builtin, scenes):
    odd = [
        scene(0, size=(8, 8)),
        scene(1, size=(9, 300)),
        scene(2, size=(200, 40)),
        np.zeros((1, 1, 3), np.uint8),
        *scenes[:2],
    ]
    fitted = Segmenter(builtin, 2, short_side=96).fit(odd)
    for image, mask, labels in zip(odd, fitted.masks, fitted.labels):
        assert mask.shape == labels.shape == image.shape[:2]


def test_empty_masks_have_no_regions(builtin, scenes):
    plain = [np.full((96, 96, 3), value, np.uint8) for value in (20, 90)]
    photographs = [plain[0], *scenes[:4], plain[1]]
    confidences = Segmenter(builtin, short_side=96).fit(photographs).confidences
    least = float(confidences[1:5].min())
    assert max(confidences[0], confidences[5]) < least
    fitted = Segmenter(builtin, 2, short_side=96, min_confidence=least).fit(photographs)
    assert [len(regions.classes) for regions in fitted.regions] == [0, 1, 1, 1, 1, 0]
    assert not fitted.labels[0].any() and not fitted.masks[5].any()
    assert not fitted.predict(plain[0]).labels.any()
    with pytest.raises(UsageError, match="number of regions, 0 in 2 photographs, got 1"):
        Segmenter(builtin, 1, short_side=96, min_confidence=1.0).fit(scenes[:2])


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_broken_photographs_are_reported_and_the_others_fitted(builtin, scenes, tmp_path):
    (tmp_path / "prose.jpg").write_text("no picture")
    fitted = Segmenter(builtin, 2, short_side=96).fit(
        [scenes[0], tmp_path / "prose.jpg", scenes[1], tmp_path / "missing.png"]
    )
    assert sorted(fitted.failures) == [1, 3] and "prose.jpg" in str(fitted.failures[1])
    for index in (1, 3):
        assert fitted.masks[index] is None and fitted.labels[index] is None and fitted.regions[index] is None
        assert fitted.categories[index] == -1 and fitted.fingerprints[index] is None
    assert fitted.masks[0].shape == fitted.masks[2].shape == (96, 128)
    assert_same_without_failures(fitted, Segmenter(builtin, 2, short_side=96).fit([scenes[0], scenes[1]]))


def assert_same_without_failures(one: Segmenter, other: Segmenter) -> None:
    for mine, theirs in zip([labels for labels in one.labels if labels is not None], other.labels, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_nothing_readable(builtin, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(ImageError, match="a.jpg"):
        Segmenter(builtin, short_side=96).fit([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    with pytest.raises(UsageError, match="at least one photograph, got none"):
        Segmenter(builtin, short_side=96).fit([])


class Between:
    """Progress callback that runs a function when a stage begins."""

    def __init__(self, stage: str, act) -> None:
        self.stage, self.act, self.steps = stage, act, collections.Counter()
        self.totals = {}

    @contextlib.contextmanager
    def __call__(self, stage: str, total: int):
        self.totals[stage] = total
        if stage == self.stage:
            self.act()

        def advance(steps: int) -> None:
            self.steps[stage] += steps

        yield advance


@pytest.mark.parametrize("how", ["replaced", "removed", "broken"])
def test_a_photograph_that_changes_between_the_passes_is_a_failure(builtin, scenes, tmp_path, how):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path, image in zip(paths, scenes):
        Image.fromarray(image).save(path)

    def act():
        if how == "removed":
            paths[2].unlink()
        elif how == "broken":
            paths[2].write_bytes(b"\x89PNG nothing else")
        else:
            Image.fromarray(scene(77, size=(50, 60))).save(paths[2])

    fitted = Segmenter(builtin, 2, short_side=96, progress=Between("masks", act)).fit(paths)
    assert list(fitted.failures) == [2] and "2.png" in str(fitted.failures[2])
    assert (
        fitted.masks[2] is None
        and fitted.labels[2] is None
        and fitted.regions[2] is None
        and fitted.categories[2] == -1
    )
    assert all(labels.any() for index, labels in enumerate(fitted.labels) if index != 2)


def test_all_photographs_gone_between_the_passes(builtin, scenes, tmp_path):
    Image.fromarray(scenes[0]).save(tmp_path / "a.png")
    segmenter = Segmenter(builtin, 1, short_side=96, progress=Between("masks", (tmp_path / "a.png").unlink))
    with pytest.raises(ImageError, match="a.png"):
        segmenter.fit([tmp_path / "a.png"])


@pytest.mark.parametrize("error", [OutputError("the disk is full"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_errors_of_an_observer_propagate_and_leave_no_files(builtin, scenes, tmp_path, monkeypatch, error):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def observe(index, result):
        raise error

    notices = []
    segmenter = Segmenter(builtin, short_side=96, n_threads=2, notice=notices.append)
    with pytest.raises(type(error)):
        segmenter.fit(scenes[:4], observe=observe)
    if isinstance(error, KeyboardInterrupt):  # the features are kept, and a notice names the folder
        (folder,) = tmp_path.iterdir()
        assert any(str(folder) in notice for notice in notices)
        assert_same(
            Segmenter(builtin, short_side=96, cache=folder).fit(scenes[:4]),
            Segmenter(builtin, short_side=96).fit(scenes[:4]),
        )
    else:
        assert not list(tmp_path.iterdir())


def test_progress_counts_every_step_of_every_stage(builtin, scenes):
    watch = Between("", None)
    readout = ReadoutConfig(photographs=4)
    segmenter = Segmenter(builtin, 2, short_side=96, n_categories=2, progress=watch, readout=readout)
    segmenter.fit(scenes[:5])
    assert watch.totals == {"features": 5, "image level": 5, "levels": 3, "readout": 4, "masks": 5, "classes": 5}
    assert watch.steps == watch.totals


# --- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_classes": 0}, "n_classes must be a whole number from 1 to 65535, got 0"),
        ({"n_classes": 70_000}, "got 70000"),
        ({"n_categories": 0}, "n_categories must be a whole number of at least 1, got 0"),
        ({"consistency": "magic"}, "magic"),
        ({"regions": "magic"}, "magic"),
        ({"refine": "magic"}, "magic"),
        ({"fit_patches": 0}, 'fit_patches must be .* or "all", got 0'),
        ({"fit_patches": "some"}, "some"),
        ({"short_side": 0}, "short_side must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_at_once(builtin, options, message):
    with pytest.raises(UsageError, match=message):
        Segmenter(builtin, **{"short_side": 96, **options})


@pytest.mark.parametrize("consistency", ["majority", "intersection"])
def test_literal_consistency_is_made_of_votes(builtin, scenes, consistency):
    scores = {}
    segmenter = Segmenter(builtin, short_side=96, consistency=consistency, refine="none", n_threads=1)
    fitted = segmenter.fit(scenes[:6], observe=lambda index, result: scores.update({index: result.score}))
    assert all(set(np.unique(score)) <= {0.0, 0.25, 1.0} for score in scores.values())  # a quarter: cleaned away
    assert fitted.collection.image_level.clusters == (2,)
    assert [len(c) for c in fitted.collection.dataset.centroids] == [2]
    result = fitted.predict(scenes[0])
    assert set(np.unique(result.score)) <= {0.0, 0.25, 1.0}
    assert iou(result.mask, fitted.masks[0]) > 0.9


def test_intersection_is_within_majority(builtin, scenes):
    found = {}
    for consistency in ("majority", "intersection"):
        segmenter = Segmenter(builtin, short_side=96, consistency=consistency, refine="none", n_threads=1)
        segmenter.fit(
            scenes[:6], observe=lambda index, result, key=consistency: found.update({(key, index): result.score})
        )
    for index in range(6):
        assert not ((found["intersection", index] == 1) & (found["majority", index] == 0)).any()


@pytest.mark.parametrize("fit_patches", [1, 40, "all"])
def test_fit_patches(builtin, scenes, fitted, fit_patches):
    other = Segmenter(builtin, 3, short_side=96, n_categories=2, fit_patches=fit_patches).fit(scenes)
    assert [len(shares) for shares in other.collection.dataset.shares] == ([1, 1] if fit_patches == 1 else [2, 5])
    if fit_patches == "all":  # there are fewer patches than the default limit
        assert_same_without_failures(other, fitted)
        np.testing.assert_array_equal(other.collection.dataset.centroids[1], fitted.collection.dataset.centroids[1])


def test_constants_are_parameters(builtin, scenes):
    from vitnp.method.collection_level import CATEGORY, DATASET

    fitted = Segmenter(
        builtin,
        short_side=96,
        image_level=ImageLevelConfig(clusters=(2, 5)),
        dataset_level=dataclasses.replace(DATASET, clusters=(4,)),
        category_level=dataclasses.replace(CATEGORY, clusters=(2, 3, 4), temperature=0.2),
    ).fit(scenes[:4])
    assert [len(c) for c in fitted.collection.dataset.centroids] == [4]
    assert [len(c) for c in fitted.collection.categories[0].centroids] == [2, 3, 4]
    assert fitted.collection.categories[0].temperature == 0.2 and fitted.collection.image_level.clusters == (2, 5)
    assert fitted.fit_parameters["category_level"]["temperature"] == 0.2


def test_cleaning_is_a_parameter(builtin, scenes):
    scores = {}
    cleaning = CleaningConfig(cap=0.125)
    segmenter = Segmenter(builtin, short_side=96, consistency="majority", refine="none", n_threads=1, cleaning=cleaning)
    fitted = segmenter.fit(scenes[:6], observe=lambda index, result: scores.update({index: result.score}))
    assert all(set(np.unique(score)) <= {0.0, 0.125, 1.0} for score in scores.values())
    assert set(np.unique(fitted.predict(scenes[0]).score)) <= {0.0, 0.125, 1.0}
    assert fitted.fit_parameters["cleaning"]["cap"] == fitted.collection.cleaning.cap == 0.125


def test_settings_are_those_of_the_method(builtin):
    segmenter = Segmenter(builtin, short_side=np.int64(96), seed=3)
    assert (segmenter.settings.short_side, segmenter.settings.seed, segmenter.settings.refine) == (96, 3, "solver")
    assert type(segmenter.settings.short_side) is int
    with pytest.raises(TypeError, match="size"):
        Segmenter(builtin, size=96)


def test_regions_exist_only_with_classes(builtin, scenes):
    with pytest.raises(UsageError, match="fit with n_classes"):
        Segmenter(builtin, short_side=96).fit(scenes[:1]).region_map(0)

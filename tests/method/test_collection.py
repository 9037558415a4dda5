"""Fitted collections on disk: what is read is what was written, and nothing else is ever taken for one."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitnp import Segmenter, segment_image
from vitnp.checkpoints.safetensors_io import write_safetensors
from vitnp.errors import CheckpointError, OutputError, UsageError
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.collection import Collection
from vitnp.method.collection_level import FittedLevel
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.parameters import run_parameters
from vitnp.method.prototypes import Prototypes, fit_prototypes
from vitnp.options import Settings
from vitnp.vit.config import ViTConfig


def scene(seed: int, size: tuple[int, int] = (72, 96)) -> np.ndarray:
    """A colored square on noise."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(70, 12, (*size, 3))
    picture[20:52, 30:66] = [(230, 60, 40), (40, 200, 60), (60, 80, 240)][seed % 3]
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted(builtin) -> Segmenter:
    return Segmenter(builtin, 3, short_side=96, n_categories=2).fit([scene(seed) for seed in range(9)])


@pytest.fixture(scope="module")
def file(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("collection") / "fitted.safetensors"
    fitted.save(path)
    return path


def same(one: Collection, other: Collection) -> bool:
    return one.digest == other.digest and one.parameters.keys() == other.parameters.keys()


# --- Round trip -------------------------------------------------------------------------------------------------------


def test_predictions_are_the_same_to_the_bit(fitted, file, builtin):
    loaded = Segmenter.load(file, builtin)
    for seed in (3, 20):
        one, other = fitted.predict(scene(seed)), loaded.predict(scene(seed))
        for name in ("score", "soft", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.confidence, one.category) == (other.confidence, other.category)
        assert dict(one.parameters) == dict(other.parameters)
    direct = segment_image(scene(3), builtin, short_side=96, collection=Collection.load(file))
    np.testing.assert_array_equal(direct.labels, fitted.predict(scene(3)).labels)


def test_every_array_and_constant_comes_back(fitted, file):
    loaded = Collection.load(file)
    assert same(loaded, fitted.collection)
    np.testing.assert_array_equal(loaded.centers, fitted.collection.centers)
    np.testing.assert_array_equal(loaded.prototypes.cls, fitted.collection.prototypes.cls)
    np.testing.assert_array_equal(loaded.prototypes.classes, fitted.collection.prototypes.classes)
    for one, other in zip(
        (loaded.dataset, *loaded.categories), (fitted.collection.dataset, *fitted.collection.categories)
    ):
        assert one.temperature == other.temperature
        for mine, theirs in zip((*one.centroids, *one.shares), (*other.centroids, *other.shares)):
            np.testing.assert_array_equal(mine, theirs)
    assert (
        loaded.image_level == ImageLevelConfig() and loaded.cleaning == CleaningConfig() and loaded.rule.how == "image"
    )


def test_equal_collections_give_equal_files(fitted, file, tmp_path):
    Collection.load(file).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_without_classes(builtin, tmp_path):
    fitted = Segmenter(
        builtin,
        short_side=96,
        refine="none",
        image_level=ImageLevelConfig(clusters=(2,)),
        cleaning=CleaningConfig(cap=0.1),
    )
    fitted.fit([scene(0), scene(1)]).save(tmp_path / "f")
    loaded = Segmenter.load(tmp_path / "f", builtin)
    assert loaded.collection.prototypes is None
    assert loaded.collection.image_level.clusters == (2,) and loaded.collection.cleaning.cap == 0.1
    result = loaded.predict(scene(5))
    assert result.labels is None and dict(result.parameters)["refine"] == "none"
    np.testing.assert_array_equal(result.soft, fitted.predict(scene(5)).soft)
    with pytest.raises(UsageError, match="no classes"):
        loaded.collection.labels(builtin, None, result.mask)


def test_a_large_collection_is_a_few_megabytes(fitted, tmp_path):
    rng = np.random.default_rng(0)

    def level(*clusters: int) -> FittedLevel:
        return FittedLevel(
            tuple(rng.normal(size=(k, 768)).astype(np.float32) for k in clusters),
            tuple(np.ones(k, np.float32) for k in clusters),
            0.05,
        )

    means = rng.normal(size=(20, 768)).astype(np.float32)
    prototypes = Prototypes(means, np.arange(20), means.mean(axis=0))
    large = Collection(
        fitted.collection.parameters,
        level(2, 5),
        tuple(level(3, 5) for _ in range(20)),
        np.ones((20, 768), np.float32),
        prototypes,
    )
    large.save(tmp_path / "large")
    assert (tmp_path / "large").stat().st_size < 3e6
    assert same(Collection.load(tmp_path / "large"), large)


def test_classes_are_stored_with_and_without_means(fitted, tmp_path):
    """Collections that were fitted before classes had means hold regions that vote, and still do."""
    rng = np.random.default_rng(0)
    cls, classes = rng.normal(size=(40, 64)), np.repeat(np.arange(4), 10)
    width = fitted.collection.centers.shape[1]
    for prototypes in (
        Prototypes(np.resize(cls, (40, width)).astype(np.float16), classes),
        fit_prototypes(np.resize(cls, (40, width)), classes),
    ):
        dataclasses.replace(fitted.collection, prototypes=prototypes).save(tmp_path / "file")
        read = Collection.load(tmp_path / "file").prototypes
        assert (read.mean is None) == (prototypes.mean is None)
        for ours, theirs in zip(prototypes.classify(np.ones((3, width))), read.classify(np.ones((3, width)))):
            np.testing.assert_array_equal(ours, theirs)


def test_a_mean_of_another_width_is_damage(fitted, tmp_path):
    width = fitted.collection.centers.shape[1]
    wrong = Prototypes(np.ones((2, width), np.float32), np.arange(2), np.ones(width + 1, np.float32))
    dataclasses.replace(fitted.collection, prototypes=wrong).save(tmp_path / "file")
    with pytest.raises(CheckpointError, match="damaged"):
        Collection.load(tmp_path / "file")


# --- Only with the features it was fitted on --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"short_side": 160}, "size 96, not 160"),
        ({"facet": "value"}, "facet key, not value"),
        ({"layer": 3}, r"layer \d+, not 3"),
        ({"stride": 8}, "stride 16, not 8"),
    ],
)
def test_other_features_are_refused_with_the_reason(file, builtin, options, told):
    with pytest.raises(UsageError, match=told):
        Segmenter.load(file, builtin, **options)
    with pytest.raises(UsageError, match=told):
        segment_image(scene(0), builtin, collection=Collection.load(file), **{"short_side": 96, **options})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("sha256", "ff", "checkpoint"),
        ("pos_embed", "antialias", "position convention"),
        ("mean", [0.4, 0.5, 0.6], "normalization"),
        ("heads", 12, "heads"),
    ],
)
def test_another_network_is_refused_with_the_reason(fitted, builtin, name, value, told):
    parameters = {**run_parameters(builtin, Settings(short_side=96)), name: value}
    assert told in fitted.collection.mismatch(parameters)
    assert fitted.collection.mismatch(run_parameters(builtin, Settings(short_side=96, seed=7, refine="none"))) is None


def test_another_checkpoint_is_named(file, builtin):
    from vitnp.vit.model import ViT

    other = ViT(builtin.config, builtin.weights, name="other", sha256="00")
    with pytest.raises(UsageError, match=r"checkpoint .*not other"):
        Segmenter.load(file, other)
    assert isinstance(other.config, ViTConfig)


def test_another_revision_of_the_checkpoint_is_refused(file, builtin):
    from vitnp.vit.model import ViT

    revised = ViT(builtin.config, builtin.weights, name=builtin.name, sha256="00")
    told = f"it was fitted with another file of the checkpoint {builtin.name}, such as an earlier revision"
    with pytest.raises(UsageError, match=f"{told}; use the options it was fitted with, or fit another"):
        Segmenter.load(file, revised)
    with pytest.raises(UsageError, match=told):
        segment_image(scene(0), revised, collection=Collection.load(file), short_side=96)


# --- Files that are none ----------------------------------------------------------------------------------------------


def test_files_that_are_no_collections(tmp_path, builtin):
    write_safetensors(tmp_path / "weights", {"a": np.zeros(3, np.float32)}, {"heads": "3"})
    (tmp_path / "prose").write_text("a text")
    (tmp_path / "empty").touch()
    for name in ("weights", "prose", "empty", "missing", "."):
        with pytest.raises(CheckpointError) as error:
            Segmenter.load(tmp_path / name, builtin)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_give_a_clean_error_or_the_right_answer(file, tmp_path, data):
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    kind = data.draw(st.sampled_from(["flip", "header", "cut", "overwrite", "insert"]))
    if kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        place = data.draw(st.integers(0, (header if kind == "header" else len(content)) - 1))
        if kind == "overwrite":
            content[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "f").write_bytes(content)
    try:
        loaded = Collection.load(tmp_path / "f")
    except CheckpointError as error:
        assert str(tmp_path / "f") in str(error) and "\n" not in str(error)
    else:
        assert same(loaded, Collection.load(file))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("consistency", None), ("consistency", "magic"), ("seed", None), ("refine", None),
        ("image_level", {"clusters": 3}), ("cleaning", {"no": 1}),
        ("regions", {"how": "magic"}), ("temperatures", {}),
    ],
)  # fmt: skip
def test_parameters_that_make_no_sense_are_found_at_once(fitted, tmp_path, name, value):
    parameters = {key: entry for key, entry in fitted.collection.parameters.items() if key != name}
    if value is not None:
        parameters[name] = value
    dataclasses.replace(fitted.collection, parameters=parameters).save(tmp_path / "odd")
    with pytest.raises(CheckpointError, match="damaged") as error:
        Collection.load(tmp_path / "odd")
    assert "\n" not in str(error.value)


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(fitted, file, tmp_path, monkeypatch):
    path = tmp_path / "fitted"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="disk is full"):
            fitted.save(path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["fitted"]
    fitted.save(path)
    assert path.read_bytes() == file.read_bytes()


def test_nothing_to_save_or_apply_before_fitting(builtin, tmp_path):
    segmenter = Segmenter(builtin, short_side=96)
    with pytest.raises(UsageError, match="fit"):
        segmenter.save(tmp_path / "f")
    with pytest.raises(UsageError, match="fit"):
        segmenter.predict(scene(0))
    assert not os.listdir(tmp_path)

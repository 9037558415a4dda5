"""The collection that comes with vitnp: when it applies, what it says when it doesn't, and how one is fitted."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import socket

import numpy as np
import pytest
from PIL import Image
from vitnp.weights.train import fit_collection as fitting
from vitnp.weights.train.data.dedup import Deduplication
from vitnp.weights.train.data.packs import list_pictures, write_pack

from vitnp.checkpoints import registry
from vitnp.checkpoints.registry import BUILT_IN, collection_path, collection_temperature, entries, find
from vitnp.cli import evaluate, segment
from vitnp.cli.arguments import fits_a_set
from vitnp.errors import CheckpointError, UsageError
from vitnp.features.spec import FeatureSpec
from vitnp.method.cleaning import clean
from vitnp.method.collection import Collection
from vitnp.method.defaults import default_collection, resolve_collection
from vitnp.method.parameters import run_parameters
from vitnp.options import SHORT_SIDE, Settings
from vitnp.pipeline import segment_image

SIDE = find(BUILT_IN).short_side or SHORT_SIDE  # pixels


def scene(seed: int, size: tuple[int, int] = (72, 96)) -> np.ndarray:
    """A colored square, never in the same place, on noise."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(70, 12, (*size, 3))
    top, left = rng.integers(8, 24), rng.integers(10, 40)
    picture[top : top + 32, left : left + 36] = rng.integers(0, 256, 3)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six photographs."""
    made = tmp_path_factory.mktemp("photographs")
    for seed in range(6):
        Image.fromarray(scene(seed)).save(made / f"p{seed}.png")
    return made


@pytest.fixture(scope="module")
def small(folder, builtin, tmp_path_factory):
    """A file that the command has fitted to them."""
    path = tmp_path_factory.mktemp("fitted") / "small.safetensors"
    assert fitting.main([str(folder), "--categories", "2", "--out", str(path), "--quiet"]) == 0
    return path


def found(capsys, *argv: object) -> tuple[list[dict], str]:
    """JSON lines and notices of the segment command."""
    assert segment.main([*map(str, argv), "--json"]) == 0
    captured = capsys.readouterr()
    notices = [line for line in captured.err.splitlines() if "built-in checkpoint" not in line]
    return [json.loads(line) for line in captured.out.splitlines()], "\n".join(notices)


# --- The file -----------------------------------------------------------------------------------------------


def test_it_is_small_and_belongs_to_the_checkpoint(builtin):
    assert collection_path(BUILT_IN).stat().st_size < 2_000_000
    collection = default_collection()
    assert collection.parameters["sha256"] == builtin.sha256 == entries()[BUILT_IN].sha256
    assert collection.mismatch(run_parameters(builtin, Settings())) is None
    assert len(collection.categories) == 20 and collection.prototypes is None
    assert collection.parameters["photographs"] >= 1000
    for level in (collection.dataset, *collection.categories):
        # Each level tells foreground from background: some clusters hold much more of it than others.
        assert all(0 <= shares.min() < 0.5 < shares.max() <= 1 or np.ptp(shares) > 0.2 for shares in level.shares)


def test_its_temperature_is_that_of_the_registry(builtin):
    wanted = collection_temperature(builtin.sha256) or 0.05
    assert {level.temperature for level in (default_collection().dataset, *default_collection().categories)} == {wanted}
    assert collection_temperature("0" * 64) is None


# --- From Python --------------------------------------------------------------------------------------------


def test_by_default_it_judges_a_photograph(builtin):
    result = segment_image(scene(0), builtin, refine="none")
    assert result.parameters["collection"] == default_collection().digest
    assert 0 <= result.category < 20 and result.labels is None
    np.testing.assert_array_equal(result.levels[1], default_collection().dataset.soft_foreground(_unit(result)))
    np.testing.assert_array_equal(
        result.levels[2], default_collection().categories[result.category].soft_foreground(_unit(result))
    )
    for named in ("auto", default_collection(), collection_path(BUILT_IN), str(collection_path(BUILT_IN))):
        same = segment_image(scene(0), builtin, refine="none", collection=named)
        np.testing.assert_array_equal(same.soft, result.soft)
        assert same.parameters == result.parameters


def _unit(result) -> np.ndarray:
    keys = result.keys.reshape(-1, result.keys.shape[-1])
    return keys / np.sqrt(np.square(keys).sum(axis=1, keepdims=True))


def test_none_leaves_the_image_level(builtin):
    plain = segment_image(scene(0), builtin, refine="none", collection=None)
    assert plain.levels is None and plain.category is None and "collection" not in plain.parameters
    named = segment_image(scene(0), builtin, refine="none", collection="none")
    np.testing.assert_array_equal(plain.soft, named.soft)
    # The collection uses features in half precision, as they are stored, so single patches may change their cluster.
    own = segment_image(scene(0), builtin, refine="none").levels[0].reshape(plain.score.shape)
    assert np.median(np.abs(clean(own) - plain.score)) < 0.01


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"short_side": 96}, r"size \d+, not 96"),
        ({"facet": "value"}, "facet key, not value"),
        ({"layer": 3}, r"layer \d+, not 3"),
        ({"stride": 8}, "stride 16, not 8"),
    ],
)
def test_other_features_fall_back_to_the_image_level(builtin, options, told):
    collection, reason = resolve_collection("auto", builtin, Settings(**options))
    assert collection is None and re.search(told, reason)
    if "short_side" in options:
        one, other = (segment_image(scene(1), builtin, **options, collection=how) for how in ("auto", None))
        np.testing.assert_array_equal(one.soft, other.soft)
        assert one.levels is None
    with pytest.raises(UsageError, match=told):
        segment_image(scene(1), builtin, **options, collection=default_collection())


def test_another_checkpoint_falls_back_and_is_named(vit_tiny):
    collection, reason = resolve_collection("auto", vit_tiny, Settings())
    assert collection is None and "checkpoint vitnp_tiny, not vit_tiny_patch16_224_augreg" in reason


def test_a_file_that_is_no_collection_is_refused(builtin, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        segment_image(scene(0), builtin, collection=tmp_path / "nowhere")


# --- On the command line ------------------------------------------------------------------------------------


def test_the_command_applies_it_offline(folder, tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    facts, notices = found(capsys, folder / "p0.png", "--out", tmp_path)
    assert notices == "" and 0 <= facts[0]["category"] < 20
    assert found(capsys, folder / "p0.png", "--out", tmp_path)[0][0]["status"] == "skipped"
    for plain in (["--collection", "none"], ["--levels", "image"]):
        facts, notices = found(capsys, folder / "p0.png", "--out", tmp_path, *plain)
        assert notices == "" and "category" not in facts[0]
        # Masks of other levels are no longer good, and those of the image level are the same however it was asked for.
        assert facts[0]["status"] == ("done" if plain[0] == "--collection" else "skipped")


def test_where_it_does_not_apply_one_line_says_why(folder, tmp_path, capsys):
    facts, notices = found(capsys, folder / "p0.png", folder / "p1.png", "--out", tmp_path, "--size", "96")
    assert len(facts) == 2 and "category" not in facts[0]
    assert notices.count("\n") == 0 and f"size {SIDE}, not 96" in notices and "--collection" in notices
    for silent in (["--quiet"], ["--collection", "none"], ["--levels", "image"]):
        assert found(capsys, folder / "p0.png", "--out", tmp_path, "--size", "96", "--overwrite", *silent)[1] == ""


def test_another_file_replaces_it(folder, small, tmp_path, capsys):
    facts, notices = found(capsys, folder / "p0.png", "--out", tmp_path, "--collection", small)
    assert notices == "" and facts[0]["category"] in (0, 1)
    with pytest.raises(UsageError, match=f"size {SIDE}, not 96"):
        segment.main(
            [str(folder / "p0.png"), "--out", str(tmp_path), "--collection", str(small), "--size", "96", "--quiet"]
        )


def test_when_photographs_are_a_set():
    def wants(levels: str, collection: str, photographs: int) -> bool:
        return fits_a_set(argparse.Namespace(levels=levels, collection=collection), photographs)

    assert [wants("auto", "auto", count) for count in (1, 29, 30, 1000)] == [False, False, True, True]
    assert [wants("auto", how, 30) for how in ("none", "my.safetensors")] == [True, False]
    assert [wants(levels, "auto", count) for levels in ("image", "each", "all") for count in (1, 30)] == [False] * 4 + [
        True
    ] * 2


@pytest.mark.parametrize("wrong", [["--levels", "image"], ["--levels", "all"], ["--classes", "2"], ["--fit-to", "x"]])
def test_a_named_collection_is_for_each_photograph(folder, small, wrong):
    with pytest.raises(UsageError, match="--collection"):
        segment.main([str(folder), "--collection", str(small), *wrong])


@pytest.mark.parametrize("wrong", [["--classes", "2"], ["--fit-to", "x"], ["--scheduler", "local"]])
def test_single_levels_fit_nothing(folder, wrong):
    with pytest.raises(UsageError, match="--levels single"):
        segment.main([str(folder), "--levels", "each", *wrong])


def test_evaluation_scores_each_by_itself_with_and_without(folder, tmp_path, capsys):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for seed in range(2):
        Image.fromarray(scene(seed)).save(tmp_path / "images" / f"{seed}.png")
        truth = segment_image(scene(seed)).mask
        Image.fromarray(truth).save(tmp_path / "masks" / f"{seed}.png")
    data = [str(tmp_path / "images"), str(tmp_path / "masks"), "--json"]

    def iou(*options: str) -> float:
        assert evaluate.main([*data, "--quiet", *options]) == 0
        return json.loads(capsys.readouterr().out)["iou"]

    assert iou() == iou("--levels", "each") == 1.0
    assert iou("--levels", "image") == iou("--collection", "none") < 1.0
    assert evaluate.main([*data, "--levels", "each", "--size", "96", "--seeds", "2"]) == 0
    assert capsys.readouterr().err.count(f"size {SIDE}, not 96") == 1
    for wrong in (["--levels", "all"], ["--levels", "image"], ["--ablate"]):
        with pytest.raises(UsageError, match="--collection"):
            evaluate.main([*data, "--collection", "x.safetensors", *wrong])


def test_the_whole_head_of_the_cat(builtin, photograph):
    cat = photograph.parent / "chelsea.jpg"
    mask = segment_image(cat, builtin).mask
    head = np.zeros(mask.shape, bool)
    head[60:250, 120:330] = True  # between the ears' roots, chin and cheeks
    assert mask[head].mean() > 0.8


# --- Fitting one --------------------------------------------------------------------------------------------


def test_what_is_fitted_judges_photographs(small, builtin):
    collection = Collection.load(small)
    assert len(collection.categories) == 2 and collection.parameters["photographs"] == 6
    assert collection.parameters["refine"] == "solver" and collection.parameters["size"] == SIDE
    assert segment_image(scene(9), builtin, collection=collection, refine="none").category in (0, 1)


@pytest.mark.slow(reason="fits twice")
def test_folder_and_pack_give_the_same_bytes_for_the_same_seed(folder, small, tmp_path, capsys):
    argv = [str(folder), "--categories", "2", "--json", "--quiet", "--threads", "2"]
    assert fitting.main([*argv, "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == small.read_bytes()
    facts = json.loads(capsys.readouterr().out)
    assert facts["photographs"] == 6 and facts["digest"] == Collection.load(small).digest

    write_pack(tmp_path / "pack.npz", [(f"in/p{seed}.png", scene(seed)) for seed in range(6)])
    pack = [str(tmp_path / "pack.npz"), "--photographs", "4", "--categories", "2", "--temperature", "0.1", "--quiet"]
    for name in ("one", "two"):
        assert fitting.main([*pack, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    collection = Collection.load(tmp_path / "one")
    assert collection.parameters["photographs"] == 4 and collection.dataset.temperature == 0.1
    assert {level.temperature for level in collection.categories} == {0.1}


def test_what_is_excluded_is_never_drawn(folder, tmp_path, capsys):
    (tmp_path / "unseen").mkdir()
    Image.fromarray(scene(50)).save(tmp_path / "unseen" / "p1.jpg")  # shares a name
    Image.fromarray(scene(2)[:, ::-1]).resize((192, 144)).save(tmp_path / "unseen" / "other.png")  # looks alike
    write_pack(tmp_path / "pack.npz", [(f"in/p{seed}.png", scene(seed)) for seed in range(6)])
    exclusion = Deduplication([tmp_path / "unseen"])
    allowed = {0, 3, 4, 5}

    drawn = {path.stem for path in fitting.sample(list_pictures([folder]), exclusion)}
    assert drawn == {f"p{seed}" for seed in allowed}
    pictures = list_pictures([tmp_path / "pack.npz"])
    drawn = [rgb.tobytes() for rgb in fitting.sample(pictures, exclusion)]
    assert sorted(drawn) == sorted(pictures[seed].read().tobytes() for seed in allowed)

    argv = [str(folder), "--exclude", str(tmp_path / "unseen"), "--out", str(tmp_path / "c"), "--quiet"]
    with pytest.raises(UsageError, match="only 4 photographs are not excluded"):
        fitting.main([*argv, "--photographs", "5"])
    assert not (tmp_path / "c").exists()


def test_a_larger_sample_begins_with_the_smaller(folder):
    pictures, nothing = list_pictures([folder]), Deduplication([])
    draw = [list(fitting.sample(pictures, nothing, count, seed=7)) for count in (None, 2, 4)]
    assert draw[0][:4] == draw[2] and draw[2][:2] == draw[1] and len(draw[0]) == len(set(draw[0])) == 6
    assert list(fitting.sample(pictures, nothing, seed=8)) != draw[0]


def test_photographs_of_the_benchmarks_are_excluded_from_the_fit(shared):
    exclusion = Deduplication([shared / "data" / "duts-dev" / "images"])
    measured = {path.name for path in (shared / "data" / "duts-dev" / "images").iterdir()}
    pictures = list_pictures(sorted((shared / "train").glob("pack_*.npz")))
    common = [picture for picture in pictures if picture.name.rpartition("/")[2] in measured]
    assert len(common) == 126
    assert not list(fitting.sample(common, exclusion))


@pytest.mark.parametrize("wrong", [["--temperature", "0"], ["--temperature", "nan"], ["--photographs", "7"]])
def test_what_cannot_be_fitted_is_refused(folder, tmp_path, wrong):
    with pytest.raises(UsageError):
        fitting.main([str(folder), "--out", str(tmp_path / "c"), "--quiet", *wrong])
    assert not list(tmp_path.iterdir())


# --- Short sides ----------------------------------------------------------------------------------------------------


def test_the_short_side_is_the_checkpoints_own(builtin, monkeypatch):
    entry = dataclasses.replace(registry.find("auto"), short_side=130)
    monkeypatch.setattr(registry, "identify", lambda stem, sha256: entry)
    assert run_parameters(builtin, Settings())["size"] == FeatureSpec.of(builtin).short_side == 128
    assert run_parameters(builtin, Settings(short_side=96))["size"] == 96
    assert segment_image(scene(0), builtin, refine="none", collection=None).score.shape == (8, 11)
    monkeypatch.setattr(registry, "identify", lambda stem, sha256: None)
    assert run_parameters(builtin, Settings())["size"] == FeatureSpec.of(builtin).short_side == 320


def test_a_collection_serves_sizes_near_its_own_and_says_so(builtin, caplog):
    own = default_collection().parameters["size"]
    near, far = round(own / 1.4 / 16) * 16, round(own / 1.6 / 16) * 16
    caplog.set_level(logging.INFO, "vitnp")
    assert segment_image(scene(0), builtin, short_side=own, refine="none").levels is not None
    assert not caplog.messages
    assert segment_image(scene(0), builtin, short_side=near, refine="none").levels is not None
    assert caplog.messages == [f"the collection was fitted at a short side of {own} pixels, and is applied at {near}"]
    assert segment_image(scene(0), builtin, short_side=far, refine="none").levels is None
    with pytest.raises(UsageError, match=f"size {own}, not {far}"):
        segment_image(scene(0), builtin, short_side=far, collection=default_collection())

"""search_similar: who is found and in which order, several queries, objects, and folders with trouble."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vitnp
from vitnp.features.extract import default_spec, prepare
from vitnp.io.preprocess import normalize
from vitnp.options import Settings
from vitnp.retrieval import descriptor


def names(ranking) -> list[str]:
    return [one.photograph.name for one in ranking.neighbors]


def search(folder, queries, vit, **options):
    return vitnp.search_similar(folder, queries, vit, short_side=32, **options)


@pytest.fixture
def folder(photographs, tmp_path):
    for seed in range(7):
        photographs(f"in/{seed}.png", seed, size=(40 + 8 * (seed % 3), 40))
    return tmp_path / "in"


def cls_by_hand(vit, path) -> np.ndarray:
    """Return the CLS token of a photograph by a forward pass of its own, of length 1 in float64."""
    pixels = prepare(vitnp.read_image(path), vit, default_spec(vit, Settings(short_side=32))).pixels
    cls = vit(normalize(pixels, vit.config.mean, vit.config.std)[None], ("cls",))["cls"][0].astype(np.float64)
    return cls / np.linalg.norm(cls)


def test_neighbors_are_those_of_brute_force(vit, folder, photographs):
    query = photographs("elsewhere/query.png", seed=99)
    found = search(folder, [query], vit, k=4)
    expected = {path.name: cls_by_hand(vit, query) @ cls_by_hand(vit, path) for path in folder.iterdir()}
    (ranking,) = found.rankings
    assert names(ranking) == sorted(expected, key=lambda name: -expected[name])[:4]
    assert np.allclose([one.similarity for one in ranking.neighbors], sorted(expected.values())[::-1][:4], atol=1e-6)
    assert found.n_searched == 7 and not found.failures


def test_a_query_is_not_its_own_neighbor_but_its_copy_is(vit, folder, tmp_path):
    query = folder / "3.png"
    shutil.copy(query, folder / "b.png")
    shutil.copy(query, folder / "a.png")
    (folder / "link.png").symlink_to(query)
    (ranking,) = search(folder, [query], vit, k=100).rankings
    assert names(ranking)[:2] == ["a.png", "b.png"]  # ties by name
    assert sorted(names(ranking)) == ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png", "a.png", "b.png"]
    assert [one.similarity for one in ranking.neighbors[:2]] == [pytest.approx(1)] * 2
    (from_link,) = search(folder, [folder / "link.png"], vit, k=100).rankings
    assert names(from_link) == names(ranking)


def test_every_query_has_its_own_answer(vit, folder, photographs):
    queries = [photographs("other.png", 50), folder / "2.png"]
    both = search(folder, queries, vit, k=3)
    alone = [search(folder, [query], vit, k=3).rankings[0] for query in queries]
    assert [names(ranking) for ranking in both.rankings] == [names(ranking) for ranking in alone]
    assert all(len(ranking.neighbors) == 3 for ranking in both.rankings)


@pytest.mark.parametrize("options", [{"n_threads": 3}, {"batch": 1}, {"n_threads": 1, "batch": 4}])
def test_threads_and_batches_change_nothing(vit, folder, photographs, options):
    query = photographs("query.png", 50)
    results = [search(folder, [query], vit, **more).to_dict() for more in ({}, options)]
    assert results[0] == results[1]


def test_the_store_of_features_gives_the_same(vit, folder, tmp_path, images_run):
    query = folder / "0.png"
    plain = search(folder, [query], vit).to_dict()
    assert search(folder, [query], vit, cache=tmp_path / "cache").to_dict() == plain
    images_run.clear()
    assert search(folder, [query], vit, cache=tmp_path / "cache").to_dict() == plain
    assert images_run == []


def test_photographs_in_memory(vit, folder):
    pixels = [vitnp.read_image(path) for path in sorted(folder.iterdir())]
    by_path = search(folder, [folder / "1.png"], vit).rankings[0]
    by_array = search(pixels, [Image.fromarray(pixels[1])], vit).rankings[0]
    assert by_array.neighbors[0].index == 1 and by_array.neighbors[0].similarity == pytest.approx(1)
    assert [one.index for one in by_array.neighbors[1:]] == [one.index for one in by_path.neighbors]
    assert by_array.neighbors[0].photograph is pixels[1]
    assert 1 not in [one.index for one in search(pixels, [pixels[1]], vit).rankings[0].neighbors]
    json.dumps(search(pixels, [pixels[1]], vit).to_dict())


def test_broken_photographs_are_listed_and_the_others_searched(vit, folder):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:300])
    (folder / "cut again.png").write_bytes((folder / "0.png").read_bytes()[:300])
    found = search(folder, [folder / "0.png", folder / "cut.png"], vit, k=20)
    assert len(found.rankings[0].neighbors) == 6 and found.n_searched == 7
    assert sorted(str(error).split(":")[0].rpartition("/")[2] for error in found.failures.values()) == [
        "cut again.png",
        "cut.png",
    ]
    assert "cut.png" in str(found.rankings[1].error) and not found.rankings[1].neighbors


def test_files_with_the_same_bytes_run_once(vit, folder, images_run):
    for number in range(5):
        shutil.copy(folder / "0.png", folder / f"copy{number}.png")
    search(folder, [folder / "0.png"], vit, n_threads=1)
    assert sum(images_run) == 7


def test_objects_are_described_by_their_patches_alone(vit, folder, photographs, monkeypatch):
    """The mask of a random network is arbitrary; what counts is that its patches, and no others, are used."""
    masks = {}
    score_patches = descriptor.score_patches

    def remembered(features, *arguments, **options):
        result = score_patches(features, *arguments, **options)
        masks[features.photograph] = (features, result.score.ravel() >= 0.5)
        return result

    monkeypatch.setattr(descriptor, "score_patches", remembered)
    (ranking,) = search(folder, [folder / "0.png"], vit, of="object").rankings
    vectors = {}
    for photograph, (features, mask) in masks.items():
        (cls,) = vit.region_cls(features.cls_state, features.last_key, features.value, mask[None])
        vectors[photograph] = cls.astype(np.float64) / np.linalg.norm(cls.astype(np.float64))
    from vitnp.io.decode import file_hash

    query = vectors[file_hash(folder / "0.png")]
    for one in ranking.neighbors:
        assert one.similarity == pytest.approx(query @ vectors[file_hash(one.photograph)], abs=1e-6)
    whole = search(folder, [folder / "0.png"], vit).rankings[0]
    assert [one.similarity for one in whole.neighbors] != [one.similarity for one in ranking.neighbors]


def test_photographs_without_an_object_are_left_out(vit, folder, monkeypatch):
    score_patches = descriptor.score_patches
    nothing = vitnp.read_image(folder / "4.png")

    def empty_for_one(features, *arguments, **options):
        result = score_patches(features, *arguments, **options)
        if features.size == nothing.shape[:2] and features.digest == digest:
            result.score[:] = 0
        return result

    digest = prepare(nothing, vit, default_spec(vit, Settings(short_side=32))).digest
    monkeypatch.setattr(descriptor, "score_patches", empty_for_one)
    found = search(folder, [folder / "0.png", folder / "4.png"], vit, of="object", k=20)
    assert found.without_object == (4,) and found.n_searched == 6
    assert "4.png" not in names(found.rankings[0])
    assert "4.png: no object was found" in str(found.rankings[1].error)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"k": 0}, "k must be"), ({"of": "sky"}, "of must be one of image, object or layout"), ({"stride": 3}, "stride")],
)
def test_values_that_are_not_allowed(vit, folder, options, named):
    with pytest.raises(vitnp.UsageError, match=named):
        search(folder, [folder / "0.png"], vit, **options)


def test_a_single_path_is_not_a_list_of_queries(vit, folder):
    with pytest.raises(vitnp.UsageError, match="put it into a list"):
        search(folder, folder / "0.png", vit)

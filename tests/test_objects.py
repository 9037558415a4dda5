"""`--instances` and `--objects N`: results, files, and the annotations of a collection."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import vitnp
from vitnp.cli.segment import main


def photograph(seed: int = 0) -> np.ndarray:
    """A large and a small square on noise."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(70, 12, (96, 160, 3))
    picture[24:72, 30:82] = (230, 140, 40)
    picture[36:66, 112:142] = (230, 140, 40)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def result(builtin):
    return vitnp.segment_image(photograph(), builtin, short_side=96, instances=True, collection=None)


def test_objects_divide_the_mask(result):
    assert len(result.objects) >= 2
    together = np.stack([each.mask for each in result.objects])
    np.testing.assert_array_equal(together.sum(axis=0), result.mask)
    for each in result.objects:
        rows, columns = np.nonzero(each.mask)
        x, y, width, height = each.box
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert each.area == each.mask.sum()


def test_cutouts_hold_one_object(result):
    whole = np.asarray(result.cutout())
    cutouts = np.stack([np.asarray(each.cutout()) for each in result.objects])
    assert cutouts.shape[1:] == whole.shape
    np.testing.assert_array_equal(cutouts[..., 3].max(axis=0), whole[..., 3])
    for each, cutout in zip(result.objects, cutouts):
        assert (cutout[..., 3][each.mask] >= 128).all() and (cutout[..., 3][result.mask & ~each.mask] == 0).all()


def test_objects_are_the_regions_of_a_single_photograph(result):
    coco = result.to_coco("a.png")
    assert [each["bbox"] for each in coco["annotations"]] == [list(each.box) for each in result.objects]
    assert [each["id"] for each in coco["categories"]] == [1]
    assert [each["area"] for each in result.to_dict()["regions"]] == [each.area for each in result.objects]


def test_one_object_is_kept_in_the_mask(result, builtin):
    single = vitnp.segment_image(photograph(), builtin, short_side=96, objects=1, collection=None)
    np.testing.assert_array_equal(single.mask, result.objects[0].mask)
    assert len(single.objects) == 1 and single.objects[0].confidence == result.objects[0].confidence


def test_results_without_separation_have_no_objects(builtin):
    plain = vitnp.segment_image(photograph(), builtin, short_side=96, collection=None)
    with pytest.raises(vitnp.UsageError, match="instances=True"):
        _ = plain.objects
    assert "instances" not in plain.parameters  # files of earlier runs stay up to date


@pytest.mark.parametrize("objects", [0, 101, 1.5, "all"])
def test_a_wrong_number_is_refused(objects, builtin):
    with pytest.raises(vitnp.UsageError, match="objects must be a whole number from 1 to 100"):
        vitnp.segment_image(photograph(), builtin, objects=objects)


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--short-side", "96"])


def test_command_lists_objects_and_writes_their_files(tmp_path, capsys):
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--instances", "--save", "mask,cutout,objects", "--json", "--levels", "image") == 0
    objects = json.loads(capsys.readouterr().out)["objects"]
    with Image.open(tmp_path / "a_objects.png") as image:
        labels = np.asarray(image)
    assert labels.max() == len(objects) >= 2
    assert [each["area"] for each in objects] == np.bincount(labels.ravel())[1:].tolist()
    assert [each["confidence"] for each in objects] == sorted((each["confidence"] for each in objects), reverse=True)
    cutouts = sorted(path.name for path in tmp_path.glob("a_cutout_*.png"))
    assert cutouts == sorted(f"a_cutout_{number}.png" for number in range(1, len(objects) + 1))

    # Another run replaces the files, and leaves none of an object that is gone.
    assert run(tmp_path / "a.png", "--objects", 1, "--save", "mask,cutout", "--levels", "image") == 0
    assert [path.name for path in tmp_path.glob("a_cutout_*.png")] == ["a_cutout_1.png"]
    with Image.open(tmp_path / "a_mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image) > 0, labels == 1)
    assert "1 object," in capsys.readouterr().out


def test_files_of_other_programs_are_not_replaced(tmp_path, capsys):
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    (tmp_path / "a_cutout_1.png").write_bytes(b"mine")
    assert run(tmp_path / "a.png", "--instances", "--save", "cutout", "--levels", "image") == 2
    assert "a_cutout_1.png: this file exists and vitnp did not write it" in capsys.readouterr().err
    assert (tmp_path / "a_cutout_1.png").read_bytes() == b"mine" and not (tmp_path / "a_cutout.png").exists()


def test_objects_cannot_be_saved_without_separation(tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    with pytest.raises(vitnp.UsageError, match="--instances"):
        run(tmp_path / "a.png", "--save", "objects")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("classes", [(), ("--classes", 2)])
def test_a_collection_has_one_annotation_per_object(tmp_path, classes):
    coco = pytest.importorskip("pycocotools.coco")
    for seed in range(4):
        Image.fromarray(photograph(seed)).save(tmp_path / f"{seed}.png")
    options = ("--levels", "all", "--instances", "--save", "objects", "--threads", 2, "--quiet")
    assert run(*(tmp_path / f"{seed}.png" for seed in range(4)), "--out", tmp_path / "out", *options, *classes) == 0
    data = coco.COCO(str(tmp_path / "out" / "annotations.json"))
    assert len(data.imgs) == 4
    for number, image in data.imgs.items():
        with Image.open(tmp_path / "out" / image["file_name"].replace(".png", "_objects.png")) as opened:
            labels = np.asarray(opened)
        annotations = data.loadAnns(data.getAnnIds(number))
        assert len(annotations) == labels.max() >= 1
        for rank, annotation in enumerate(annotations, 1):
            np.testing.assert_array_equal(data.annToMask(annotation), labels == rank)
        scores = [annotation["score"] for annotation in annotations]
        assert scores == sorted(scores, reverse=True)
    assert {each["category_id"] for each in data.anns.values()} <= ({1, 2} if classes else {1})


def test_threads_give_the_same_objects(builtin):
    photographs = [photograph(seed) for seed in range(4)]
    maps = []
    for n_threads in (1, 3):
        segmenter = vitnp.Segmenter(builtin, short_side=96, instances=True, n_threads=n_threads).fit(photographs)
        maps.append([segmenter.region_map(index) for index in range(4)])
        assert [len(regions.scores) for regions in segmenter.regions] == [each.max() for each in maps[-1]]
    for one, other in zip(*maps):
        np.testing.assert_array_equal(one, other)

"""Readers of labeled data sets, on small sets made here in each format, sound and broken."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vitnp.errors import ImageError, UsageError, VitnpError
from vitnp.evaluate.data.class_tables import read_class_table
from vitnp.evaluate.data.coco import read_coco
from vitnp.evaluate.data.label_images import read_coseg, read_label_folder, read_labels
from vitnp.evaluate.data.voc import VOC_CLASSES, read_split, read_voc
from vitnp.evaluate.data.voc_boxes import read_boxes, read_voc_boxes
from vitnp.masks import rle
from vitnp.masks.polygons import fill_polygon

quick = settings(derandomize=True, deadline=None, max_examples=80)

LABELS = np.array([[0, 1, 255], [20, 15, 1]], np.uint8)


def save_photograph(path, shape=(2, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape[::-1], "teal").save(path)


def save_labels(path, labels=LABELS, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if mode == "P":
        # Colors that mislead whoever reads them instead of the numbers.
        picture.putpalette([(37 * k) % 256 for k in range(768)])
    picture.save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sentence(caught) -> str:
    """The message, which must be one line that says something to do."""
    text = str(caught.value)
    assert "\n" not in text and ";" in text
    return text


# --- PASCAL VOC ------------------------------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path):
    """VOCdevkit with VOC2012: two photographs, a and b."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in "ab":
        save_photograph(folder / "JPEGImages" / f"{name}.jpg")
        save_labels(folder / "SegmentationClass" / f"{name}.png")
    save_labels(folder / "SegmentationClassAug" / "a.png", LABELS[:, ::-1].copy(), mode="L")
    write(folder / "ImageSets" / "Segmentation" / "val.txt", "b\na\n")
    write(folder / "ImageSets" / "Segmentation" / "train.txt", "a\n\n")
    write(folder / "ImageSets" / "Segmentation" / "aug.txt", "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n")
    return folder


def test_voc(voc):
    for root in (voc.parent, voc):
        found = read_voc(root, "val")
        assert found.classes == VOC_CLASSES and len(VOC_CLASSES) == 21
        assert [sample.name for sample in found.samples] == ["b", "a"]
        assert found.samples[0].image == voc / "JPEGImages" / "b.jpg"
        labels = found.samples[0].load_truth((2, 3))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, LABELS)
    assert [sample.name for sample in read_voc(voc, "train").samples] == ["a"]


def test_voc_augmented(voc):
    found = read_voc(voc, "aug", masks="SegmentationClassAug")
    np.testing.assert_array_equal(found.samples[0].load_truth((2, 3)), LABELS[:, ::-1])


def test_voc_merged(voc, tmp_path):
    table = "\n".join(f"{name} {'animal' if name in ('bird', 'cat') else 'thing'}" for name in VOC_CLASSES[1:-1])
    found = read_voc(voc, "val", merge=write(tmp_path / "table", table + "\ntvmonitor ignore"))
    assert found.classes == ("background", "thing", "animal")
    np.testing.assert_array_equal(found.samples[0].load_truth((2, 3)), [[0, 1, 255], [255, 1, 1]])


def test_voc_says_what_is_missing(voc, tmp_path):
    for root, split, options, words in (
        (tmp_path / "nowhere", "val", {}, ["JPEGImages"]),
        (voc, "vall", {}, ["vall.txt", "train, val"]),
        (voc, "aug", {"masks": "SegmentationObject"}, ["SegmentationObject"]),
    ):
        with pytest.raises(UsageError) as caught:
            read_voc(root, split, **options)
        assert all(word in sentence(caught) for word in words)
    (voc / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(UsageError, match=r"a\.png.*val\.txt"):
        read_voc(voc, "val")
    write(voc / "ImageSets" / "Segmentation" / "val.txt", "\n")
    with pytest.raises(UsageError, match="empty"):
        read_voc(voc, "val")
    write(voc / "ImageSets" / "Segmentation" / "val.txt", "a\nb\na\n")
    with pytest.raises(UsageError, match="a twice"):
        read_split(voc / "ImageSets" / "Segmentation", "val")
    (voc.parent / "VOC2007" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(UsageError, match="VOC2007, VOC2012"):
        read_voc(voc.parent, "val")


# --- Label maps in a folder ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """images/ and labels/ with two pairs in subfolders."""
    for name in ("x/1", "y/1"):
        save_photograph(tmp_path / "images" / f"{name}.jpg")
    save_labels(tmp_path / "labels" / "x" / "1.png", np.array([[0, 4, 255], [2, 2, 0]], np.uint8))
    save_labels(tmp_path / "labels" / "y" / "1.png", np.array([[0, 0, 255], [255, 3, 0]], np.uint8), mode="L")
    return tmp_path / "images", tmp_path / "labels"


def test_folder(folder, tmp_path):
    found = read_label_folder(*folder)
    assert found.classes == ("background", "1", "2", "3", "4")
    assert [(sample.name, sample.image) for sample in found.samples] == [
        ("x/1.jpg", folder[0] / "x" / "1.jpg"),
        ("y/1.jpg", folder[0] / "y" / "1.jpg"),
    ]
    np.testing.assert_array_equal(found.samples[1].load_truth((2, 3)), [[0, 0, 255], [255, 3, 0]])
    names = write(tmp_path / "names.txt", "nothing  # label 0\ncat\n\npotted plant\nsheep\ncow\n")
    assert read_label_folder(*folder, names=names).classes == ("nothing", "cat", "potted plant", "sheep", "cow")


def test_folder_merged_by_number(folder, tmp_path):
    table = write(tmp_path / "table.csv", "0,3\n1,1\n2,1\n3,ignore\n4,0\n255,2\n")
    found = read_label_folder(*folder, merge=table)
    # 1 has two sources; 2 and 3 are called after their only ones, as far as these have names.
    assert found.classes == ("background", "1", "2", "background")
    np.testing.assert_array_equal(found.samples[0].load_truth((2, 3)), [[3, 0, 2], [1, 1, 3]])
    np.testing.assert_array_equal(found.samples[1].load_truth((2, 3)), [[3, 3, 2], [2, 255, 3]])


def test_folder_of_all_background(tmp_path):
    save_photograph(tmp_path / "images" / "1.jpg")
    save_labels(tmp_path / "labels" / "1.png", np.full((2, 3), 255, np.uint8))
    assert read_label_folder(tmp_path / "images", tmp_path / "labels").classes == ("background",)


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (np.zeros((3, 2), np.uint8), "2 x 3"),
        (np.zeros((2, 3, 3), np.uint8), "got colors"),
        (np.full((2, 3), 1000, np.uint16), "1000"),
        (np.full((2, 3), 0.5, np.float32), "whole numbers"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\nrubbish", "damaged"),
        (None, "no such file"),
    ],
)
def test_broken_label_maps(tmp_path, labels, word):
    path = tmp_path / "labels.tif"
    if isinstance(labels, bytes):
        path.write_bytes(labels)
    elif labels is not None:
        Image.fromarray(labels).save(path)
    with pytest.raises(ImageError) as caught:
        read_labels(path, (2, 3))
    assert word in sentence(caught) and str(path) in str(caught.value)


def test_sixteen_bits_and_one_bit_are_numbers_too(tmp_path):
    Image.fromarray(LABELS.astype(np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", (2, 3), 21), LABELS)
    Image.fromarray(LABELS == 1).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png", (2, 3), 2), LABELS == 1)


def test_a_label_beyond_the_classes(tmp_path):
    save_labels(tmp_path / "a.png")
    with pytest.raises(UsageError, match="0 to 19, .* got 20"):
        read_labels(tmp_path / "a.png", (2, 3), 20)


# --- Co-segmentation -------------------------------------------------------------------------------------------------


def test_coseg(tmp_path):
    for category, name in (("Dog", "1"), ("Cat", "1"), ("Cat", "2")):
        save_photograph(tmp_path / "images" / category / f"{name}.jpg")
        mask = np.array([[0, 255, 0], [0, 255, 255]], np.uint8)
        save_labels(tmp_path / "masks" / category / f"{name}.png", mask, mode="L")
    found = read_coseg(tmp_path / "images", tmp_path / "masks")
    assert found.classes == ("background", "Cat", "Dog")
    assert [sample.name for sample in found.samples] == ["Cat/1.jpg", "Cat/2.jpg", "Dog/1.jpg"]
    np.testing.assert_array_equal(found.samples[2].load_truth((2, 3)), [[0, 2, 0], [0, 2, 2]])
    assert found.samples[0].load_truth((2, 3)).dtype == np.uint8
    with pytest.raises(ImageError):
        found.samples[0].load_truth((3, 2))
    pets = found.merge_classes(write(tmp_path / "table", "Cat\tpet\nDog\tpet\n"))
    assert pets.classes == ("background", "pet")
    np.testing.assert_array_equal(pets.samples[2].load_truth((2, 3)), [[0, 1, 0], [0, 1, 1]])
    save_photograph(tmp_path / "images" / "stray.jpg")
    save_labels(tmp_path / "masks" / "stray.png")
    with pytest.raises(UsageError, match="stray.jpg") as caught:
        read_coseg(tmp_path / "images", tmp_path / "masks")
    sentence(caught)


def test_coseg_of_real_photographs(shared):
    found = read_coseg(shared / "data" / "coseg-dev" / "images", shared / "data" / "coseg-dev" / "masks")
    assert len(found.samples) == 240 and len(found.classes) == 11
    sample = found.samples[0]
    with Image.open(sample.image) as picture:
        labels = sample.load_truth(picture.size[::-1])
    assert set(np.unique(labels)) == {0, 1}


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_table_separators_comments_and_names_with_spaces(tmp_path):
    classes = ("background", "potted plant", "cat", "dining table", "dog")
    lines = "# coarse\npotted plant\tgreen things\n  cat, animal  # soft\ndining table furniture\n4   animal\n"
    lookup, names = read_class_table(write(tmp_path / "table", lines), classes)
    assert names == ("background", "green things", "animal", "furniture")
    assert lookup[[0, 1, 2, 3, 4, 255]].tolist() == [0, 1, 2, 3, 2, 255]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat a\n", ["dog", "ignore"]),
        ("cat a\ndog\n", ["line 2", "two columns"]),
        ("cat,a,b\ndog,a\n", ["line 1", "two columns"]),
        ("cat a\ndog a\nhorse a\n", ["line 3", "horse"]),
        ("cat a\ndog a\n1 b\n", ["line 3", "1"]),
        ("cat 7\ndog animal\n", ["mixes", "7", "animal"]),
        ("cat 7\ndog 300\n", ["300", "254"]),
    ],
)
def test_broken_tables(tmp_path, text, words):
    path = write(tmp_path / "table.txt", text)
    with pytest.raises(UsageError) as caught:
        read_class_table(path, ("background", "cat", "dog"))
    assert all(word in str(caught.value) for word in [str(path), *words])
    assert "\n" not in str(caught.value)


def test_tables_that_are_no_text(tmp_path):
    (tmp_path / "table").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "table", tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError) as caught:
            read_class_table(path, ("background", "cat"))
        assert str(path) in sentence(caught)


# --- COCO ------------------------------------------------------------------------------------------------------------


def pack(runs):
    """COCO's packed run lengths, from the format's description: an independent encoder."""
    text = ""
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        while True:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            text += chr(48 + low + (32 if more else 0))
            if not more:
                break
    return text


def runs_of(mask):
    """Run lengths down the columns, by a loop."""
    runs, last = [0], False
    for value in mask.T.ravel().tolist():
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    return runs


@quick
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_run_lengths_come_back(mask):
    runs = runs_of(mask)
    np.testing.assert_array_equal(rle.decode(runs, mask.shape), mask)
    np.testing.assert_array_equal(rle.decode(pack(runs), mask.shape), mask)


def test_a_string_that_the_reference_tools_made():
    # pycocotools 2.0's encode of an 8 x 9 mask whose rows 2 to 4 of columns 3 to 6 are set.
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:7] = True
    np.testing.assert_array_equal(rle.decode("j03500000>", (8, 9)), mask)


@pytest.mark.parametrize(
    "counts",
    [
        [5],
        [7],
        [3, -1, 4],
        [2, 2, 1.0, 1],
        [True, 5],
        ["6"],
        [10**30],
        [None],
        [],
        "6\x7f",
        "\x00",
        "V",
        "~" * 40,
        "6é",
        "",
    ],
)
def test_damaged_run_lengths(counts):
    with pytest.raises(ValueError, match="run"):
        rle.decode(counts, (2, 3))


@quick
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_text_is_a_mask_or_refused(text):
    try:
        mask = rle.decode(text, (4, 5))
    except ValueError:
        return
    assert mask.shape == (4, 5)


def crossings(outline, x, y):
    """How often the ray from (x, y) to the left crosses the outline."""
    corners = list(zip(outline[::2], outline[1::2]))
    count = 0
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if (y0 <= y) != (y1 <= y):
            count += x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x
    return count


@quick
@given(st.lists(st.integers(-8, 40), min_size=6, max_size=16).filter(lambda numbers: len(numbers) % 2 == 0))
def test_polygons_by_ray(numbers):
    outline = [number / 4 for number in numbers]
    expected = [[crossings(outline, x + 0.5, y + 0.5) % 2 == 1 for x in range(9)] for y in range(7)]
    np.testing.assert_array_equal(fill_polygon(outline, (7, 9)), expected)


def test_polygons_side_by_side_share_nothing_and_leave_no_gap():
    whole = fill_polygon([0.3, 0.2, 8.1, 1.4, 7.5, 6.9, 1.2, 6.1], (7, 9))
    left = fill_polygon([0.3, 0.2, 8.1, 1.4, 1.2, 6.1], (7, 9))
    right = fill_polygon([8.1, 1.4, 7.5, 6.9, 1.2, 6.1], (7, 9))
    assert not (left & right).any() and left.any() and right.any()
    np.testing.assert_array_equal(left | right, whole)


@pytest.mark.parametrize(
    "outline", [[], [0, 0, 1, 1], [0] * 7, [0, 0, 1, 0, float("nan"), 1], [1e300] * 6, "abcdef", [[0, 0]] * 3, 5]
)
def test_what_is_no_polygon(outline):
    with pytest.raises(ValueError, match="three pairs"):
        fill_polygon(outline, (2, 2))


def annotation(category, segmentation, image=1, **more):
    return {"id": 7, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


@pytest.fixture
def coco(tmp_path):
    """A function that writes an instances file for two photographs of 4 x 6 pixels (a of category cat, b empty)."""

    def make(*annotations, **changes):
        content = {
            "images": [
                {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6},
                {"id": 2, "file_name": "sub/b.jpg", "height": 4, "width": 6},
            ],
            "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
            "annotations": list(annotations),
        } | changes
        for image in ("a.jpg", "sub/b.jpg"):
            save_photograph(tmp_path / "photos" / image, (4, 6))
        return write(tmp_path / "instances.json", json.dumps(content)), tmp_path / "photos"

    return make


def test_coco(coco, tmp_path):
    crowd = np.zeros((4, 6), bool)
    crowd[:, 3:] = True
    small = np.zeros((4, 6), bool)
    small[1, 1:3] = True
    packed = np.zeros((4, 6), bool)
    packed[0, 4:] = True
    path, photographs = coco(
        annotation(90, {"size": [4, 6], "counts": runs_of(small)}),
        # Larger, and written later: lies below. Two polygons, one object.
        annotation(3, [[0, 0, 3, 0, 3, 2, 0, 2], [0, 3, 1, 3, 1, 4, 0, 4]]),
        annotation(90, {"size": [4, 6], "counts": pack(runs_of(packed))}),
        annotation(3, {"size": [4, 6], "counts": runs_of(crowd)}, iscrowd=1),
    )
    found = read_coco(path, photographs)
    assert found.classes == ("background", "cat", "dog")
    assert [sample.name for sample in found.samples] == ["a.jpg", "sub/b.jpg"]
    np.testing.assert_array_equal(
        found.samples[0].load_truth((4, 6)),
        [[1, 1, 1, 255, 2, 2], [1, 2, 2, 255, 255, 255], [0, 0, 0, 255, 255, 255], [1, 0, 0, 255, 255, 255]],
    )
    assert not found.samples[1].load_truth((4, 6)).any()
    merged = read_coco(path, photographs, merge=write(tmp_path / "table", "cat pet\ndog pet"))
    assert merged.classes == ("background", "pet")
    assert set(np.unique(merged.samples[0].load_truth((4, 6)))) == {0, 1, 255}


def test_coco_overlap_of_equals_shows_the_later(coco):
    square = [[0, 0, 2, 0, 2, 2, 0, 2]]
    for first, second, label in ((3, 90, 2), (90, 3, 1)):
        found = read_coco(*coco(annotation(first, square), annotation(second, square)))
        assert (found.samples[0].load_truth((4, 6))[:2, :2] == label).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [[0, 0, 1]],
        [5],
        "abc",
        {"size": [4, 6]},
        {"size": [6, 4], "counts": [24]},
        {"size": [4, 6], "counts": [23]},
        {"size": [4, 6], "counts": "~~~"},
        {"size": [4, 6], "counts": 24},
        {"size": None, "counts": []},
    ],
)
def test_coco_damaged_segmentations(coco, segmentation):
    path, photographs = coco(annotation(3, segmentation))
    found = read_coco(path, photographs)
    with pytest.raises(ImageError, match="annotation 7") as caught:
        found.samples[0].load_truth((4, 6))
    sentence(caught)
    assert not found.samples[1].load_truth((4, 6)).any()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": []}, "no photographs"),
        ({"images": None}, "not a COCO"),
        ({"images": [{"id": 1}]}, "not a COCO"),
        ({"images": [{"id": [], "file_name": "a.jpg", "height": 4, "width": 6}]}, "not a COCO"),
        ({"images": [{"id": 1, "file_name": "lost.jpg", "height": 4, "width": 6}]}, "lost.jpg"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}] * 2}, "twice"),
        ({"categories": [{"id": k, "name": str(k)} for k in range(300)]}, "300"),
        ({"annotations": [annotation(4, [])]}, "category 4"),
        ({"annotations": [3]}, "not a COCO"),
        ({"annotations": {"a": 1}}, "not a COCO"),
    ],
)
def test_coco_broken_files(coco, changes, word):
    with pytest.raises(UsageError) as caught:
        read_coco(*coco(**changes))
    assert word in sentence(caught)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 100_000])
def test_coco_not_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_coco(tmp_path / "a.json", tmp_path)
    assert "a.json" in sentence(caught)
    with pytest.raises(UsageError, match="no such file"):
        read_coco(tmp_path / "b.json", tmp_path)


def test_coco_photograph_of_another_size(coco):
    found = read_coco(*coco())
    with pytest.raises(ImageError, match="6 x 4 pixels, but has 4 x 6"):
        found.samples[0].load_truth((6, 4))


# --- Boxes -----------------------------------------------------------------------------------------------------------

ANNOTATION = """<?xml version="1.0"?>
<annotation><filename>a.jpg</filename>
 <object><name>person</name><truncated>0</truncated><difficult>0</difficult>
  <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  <bndbox><xmax>40</xmax><xmin>11</xmin><ymin>1</ymin><ymax>30.5</ymax></bndbox></object>
 <object><name>cat</name><truncated>1</truncated><difficult>0</difficult>
  <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></object>
 <object><name>dog</name><difficult>1</difficult>
  <bndbox><xmin>5</xmin><ymin>6</ymin><xmax>7</xmax><ymax>8</ymax></bndbox></object>
</annotation>"""


def test_boxes(tmp_path):
    folder = tmp_path / "VOC2007"
    save_photograph(folder / "JPEGImages" / "a.jpg")
    write(folder / "Annotations" / "a.xml", ANNOTATION)
    write(folder / "ImageSets" / "Main" / "trainval.txt", "a\n")
    for root in (tmp_path, folder):
        (sample,) = read_voc_boxes(root)
        assert (sample.name, sample.image) == ("a", folder / "JPEGImages" / "a.jpg")
        # Counted from 1 with the last pixel included becomes counted from 0 without it.
        assert sample.load_boxes().tolist() == [[10, 0, 40, 30.5], [0, 0, 1, 1], [4, 5, 7, 8]]
        assert sample.load_boxes(hard=False).tolist() == [[10, 0, 40, 30.5]]
    (folder / "Annotations" / "a.xml").unlink()
    with pytest.raises(UsageError, match=r"a\.xml"):
        read_voc_boxes(folder)


def test_no_objects_no_boxes(tmp_path):
    boxes = read_boxes(write(tmp_path / "a.xml", "<annotation/>"))
    assert boxes.shape == (0, 4)


BOX = "<annotation><object><bndbox>{}</bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not XML"),
        ("<annotation>", "not XML"),
        ("<svg/>", "<svg>"),
        ("<annotation><object/></annotation>", "four numbers"),
        (BOX.format("<xmin>a</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax>"), "four numbers"),
        (BOX.format("<xmin>9</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax>"), "no area"),
        (BOX.format("<xmin>nan</xmin><ymin>1</ymin><xmax>3</xmax><ymax>4</ymax>"), "no area"),
        (BOX.format("<xmin>1</xmin><ymin>1</ymin><xmax>inf</xmax><ymax>4</ymax>"), "no area"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "document type"),
        ('<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
        ("<annotation>&undeclared;</annotation>", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not XML"),
    ],
)
def test_broken_annotations(tmp_path, text, word):
    path = write(tmp_path / "a.xml", text)
    with pytest.raises(ImageError) as caught:
        read_boxes(path)
    assert word in sentence(caught) and str(path) in str(caught.value)


def test_a_document_type_is_refused_in_any_encoding(tmp_path):
    entities = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    bomb = f'<?xml version="1.0" encoding="utf-16"?>{entities}<annotation>&b;</annotation>'
    (tmp_path / "a.xml").write_bytes(bomb.encode("utf-16"))
    with pytest.raises(ImageError, match="document type"):
        read_boxes(tmp_path / "a.xml")


def test_missing_and_huge_annotations(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_boxes(tmp_path / "a.xml")
    write(tmp_path / "b.xml", "<annotation>" + " " * 4_000_000 + "</annotation>")
    with pytest.raises(ImageError, match="at most 4000000 bytes"):
        read_boxes(tmp_path / "b.xml")


@quick
@given(st.integers(0, len(ANNOTATION) - 1), st.binary(max_size=3))
def test_damaged_annotations_are_refused_or_read(tmp_path_factory, place, noise):
    path = tmp_path_factory.mktemp("xml") / "a.xml"
    content = ANNOTATION.encode()
    path.write_bytes(content[:place] + noise + content[place + 1 :])
    try:
        assert read_boxes(path).shape[1] == 4
    except VitnpError as error:
        assert "\n" not in str(error)

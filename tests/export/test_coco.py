"""COCO files: run lengths and polygons against pycocotools and naive loops, and the file as a whole."""

from __future__ import annotations

import base64
import json
import pathlib
import runpy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitnp.errors import OutputError
from vitnp.export.coco import CocoWriter, segmentation
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.export.writer import class_names
from vitnp.masks.contours import polygons, rings, smooth_rings
from vitnp.masks.rle import encode, extent, run_lengths

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
CASES = runpy.run_path(str(GOLDEN / "make_coco.py"))
GOLDEN_VALUES = json.loads((GOLDEN / "coco.json").read_text())
quick = settings(derandomize=True, deadline=None, max_examples=150)

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)) | st.tuples(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7)), st.integers(2, 4)
).map(lambda pair: np.kron(pair[0], np.ones((pair[1], pair[1]), bool)))


def grid(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def golden_mask(name):
    return CASES["make_mask"](*CASES["CASES"][name])


# --- Independent definitions, character by character and pixel by pixel -----------------------------------------------


def naive_decode(counts, shape):
    runs, at = [], 0
    while at < len(counts):
        number, place, more = 0, 0, True
        while more:
            code = ord(counts[at]) - 48
            assert 0 <= code < 64
            number |= (code & 31) << (5 * place)
            more = bool(code & 32)
            at, place = at + 1, place + 1
            if not more and code & 16:
                number -= 1 << (5 * place)
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    pixels = [index % 2 == 1 for index, run in enumerate(runs) for _ in range(run)]
    height, width = shape
    assert len(pixels) == height * width
    return np.array([[pixels[column * height + row] for column in range(width)] for row in range(height)])


def naive_runs(mask):
    lengths, value = [0], False
    for column in mask.T.tolist():
        for pixel in column:
            if pixel != value:
                lengths.append(0)
                value = pixel
            lengths[-1] += 1
    return lengths


def naive_fill(polygon, shape):
    """Pixels whose middle is inside: a ray to the right crosses the outline an odd number of times."""
    points = list(zip(polygon[::2], polygon[1::2]))
    filled = np.zeros(shape, bool)
    for row, column in np.ndindex(*shape):
        y, x = row + 0.5, column + 0.5
        crossings = 0
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
            crossings += x0 == x1 and x0 > x and min(y0, y1) < y < max(y0, y1)
        filled[row, column] = crossings % 2
    return filled


@pytest.mark.parametrize("name", CASES["CASES"])
def test_run_lengths_are_those_of_pycocotools(name):
    mask, golden = golden_mask(name), GOLDEN_VALUES[name]
    assert encode(mask) == golden["counts"]
    top, bottom, left, right = extent(mask)
    assert [left, top, right - left, bottom - top] == golden["bbox"]
    assert np.count_nonzero(mask) == golden["area"]


@pytest.mark.parametrize("name", CASES["CASES"])
def test_pycocotools_fills_polygons_exactly(name):
    # "filled" is what pycocotools made of "polygons"; large outlines aren't stored, but come from the same code.
    mask, golden = golden_mask(name), GOLDEN_VALUES[name]
    assert golden["filled"] == golden["counts"]
    if golden["polygons"] is not None:
        assert polygons(mask) == golden["polygons"]


@quick
@given(masks)
def test_run_lengths_come_back(mask):
    counts = encode(mask)
    assert np.array_equal(naive_decode(counts, mask.shape), mask)
    assert run_lengths(mask).tolist() == naive_runs(mask)


@quick
@given(masks, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_run_lengths_wherever_the_object_lies(mask, above, below, before, behind):
    padded = np.pad(mask, ((above, below), (before, behind)))
    assert run_lengths(padded).tolist() == naive_runs(padded)


@pytest.mark.slow(reason="large masks")
def test_long_runs_of_large_masks():
    # Naive loops would take minutes; so known run lengths are compared instead.
    mask = np.zeros((5000, 8000), bool)
    mask[10:-10, 4000] = True
    mask[:, 7999] = True
    assert run_lengths(mask).tolist() == [4000 * 5000 + 10, 4980, 10 + 3998 * 5000, 5000]
    fortran = np.asfortranarray(mask)
    assert encode(fortran) == encode(mask)


@quick
@given(masks)
def test_polygons_fill_to_the_mask(mask):
    filled = [naive_fill(polygon, mask.shape) for polygon in polygons(mask)]
    # Exactly, and no pixel twice.
    assert np.array_equal(np.sum(filled, axis=0, dtype=int) if filled else np.zeros(mask.shape, int), mask.astype(int))


@quick
@given(masks)
def test_rings_turn_at_every_corner_and_enclose_the_area(mask):
    area = 0
    for ring in rings(mask):
        along = np.roll(ring, -1, axis=0) - ring
        horizontal = along[:, 1] == 0
        assert ((along != 0).sum(axis=1) == 1).all() and (horizontal != np.roll(horizontal, 1)).all()
        # Shoelace formula: parts count clockwise (y down), holes against it.
        area += int((ring[:, 0] * np.roll(ring[:, 1], -1) - ring[:, 1] * np.roll(ring[:, 0], -1)).sum()) // 2
    assert area == np.count_nonzero(mask)


@pytest.mark.parametrize(
    "mask, count",
    [
        (grid("#.", ".#"), 2),  # touching at a corner: two parts
        (grid(".#", "#."), 2),
        (grid("###", "#.#", "###"), 1),
        (grid("####", "#.##", "##.#", "####"), 1),  # two holes that touch at a corner are one
        (grid("#####", "#.#.#", "#####"), 1),
        (grid("#####", "#...#", "#.#.#", "#...#", "#####"), 2),  # a part in a hole
        (grid("..."), 0),
    ],
)
def test_polygons_are_parts(mask, count):
    assert len(polygons(mask)) == count


def test_smooth_rings_follow_the_outline():
    i, j = np.mgrid[:200, :300]
    disc = (i + 0.5 - 90) ** 2 + (j + 0.5 - 160) ** 2 < 60**2
    hole = (i + 0.5 - 90) ** 2 + (j + 0.5 - 160) ** 2 < 20**2
    curves = smooth_rings(disc & ~hole)
    assert len(curves) == 2
    for curve, radius in zip(curves, (60, 20)):
        distances = np.hypot(curve[:, 0] - 160, curve[:, 1] - 90)
        assert np.abs(distances - radius).max() < 1
        assert np.hypot(*(np.roll(curve, -1, axis=0) - curve).T).max() < 5
    assert len(smooth_rings(disc, step=10)[0]) < len(smooth_rings(disc)[0]) / 3
    assert smooth_rings(grid("#")) == [] and smooth_rings(grid(".")) == []


# --- The file --------------------------------------------------------------------------------------------------------


def photograph(name, shape, regions=()):
    """A photograph with regions (mask, class, score) that do not overlap."""
    region_map = np.zeros(shape, np.uint16)
    for number, (mask, _, _) in enumerate(regions, 1):
        region_map[mask] = number
    records = tuple(RegionRecord(label, score, 1.0, 0) for _, label, score in regions)
    return PhotographRecord(name, 0.5, records, lambda: region_map, lambda: None)


def read(path):
    return json.loads(path.read_text(encoding="ascii"))


@pytest.mark.parametrize("as_polygons", [False, True])
def test_file_holds_images_categories_and_regions(tmp_path, as_polygons):
    path = tmp_path / "annotations.json"
    ring = golden_mask("ring")
    dot = np.zeros_like(ring)
    dot[tuple(np.argwhere(~ring)[-1])] = True
    with CocoWriter(path, class_names(3), tolerance=0 if as_polygons else None) as coco:
        coco.add(photograph("b/a.jpg", ring.shape, [(ring, 3, 0.98765432), (dot, np.int64(1), np.float32(0.5))]))
        coco.add(photograph('ä "quoted".jpg', (1, 2)))
        coco.add(photograph("c.jpg", ring.shape, [(np.zeros_like(ring), 1, 1), (~ring, 2, 0)]))
    content = read(path)
    assert set(content) == {"info", "categories", "images", "annotations"}
    assert content["categories"] == [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
    rows, columns = ring.shape
    assert content["images"] == [
        {"id": 1, "file_name": "b/a.jpg", "height": rows, "width": columns},
        {"id": 2, "file_name": 'ä "quoted".jpg', "height": 1, "width": 2},
        {"id": 3, "file_name": "c.jpg", "height": rows, "width": columns},
    ]
    expected = [(1, 3, 0.987654, ring), (1, 1, 0.5, dot), (3, 2, 0.0, ~ring)]
    assert len(content["annotations"]) == len(expected)
    for number, (annotation, (image, category, score, mask)) in enumerate(zip(content["annotations"], expected), 1):
        outline = annotation.pop("segmentation")
        i, j = np.nonzero(mask)
        assert annotation == {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [j.min(), i.min(), j.max() - j.min() + 1, i.max() - i.min() + 1],
            "area": mask.sum(),
            "score": score,
            "iscrowd": 0,
        }
        if as_polygons:
            assert np.array_equal(sum(naive_fill(polygon, mask.shape) for polygon in outline) > 0, mask)
        else:
            assert outline["size"] == [rows, columns]
            assert np.array_equal(naive_decode(outline["counts"], mask.shape), mask)


def test_empty_collection_is_a_valid_file(tmp_path):
    with CocoWriter(tmp_path / "annotations.json", []):
        pass
    content = read(tmp_path / "annotations.json")
    assert content["images"] == content["annotations"] == content["categories"] == []


@pytest.mark.slow(reason="writes more than fits the buffer")
def test_same_content_same_bytes_also_beyond_the_memory_buffer(tmp_path):
    mask = golden_mask("photograph")
    for name in ("a.json", "b.json"):
        with CocoWriter(tmp_path / name, class_names(1)) as coco:
            for number in range(1500):
                coco.add(photograph(f"{number}.jpg", mask.shape, [(mask, 1, 0.5)]))
    assert (tmp_path / "a.json").stat().st_size > 1 << 21
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert len(read(tmp_path / "a.json")["annotations"]) == 1500


def test_undecodable_names_are_valid_unicode_with_their_bytes(tmp_path):
    name = b"\xff.jpg".decode("utf-8", "surrogateescape")
    with CocoWriter(tmp_path / "a.json", []) as coco:
        coco.add(photograph(name, (1, 1)))
        coco.add(photograph("\u732b.jpg", (1, 1)))
    assert (tmp_path / "a.json").read_bytes().isascii()
    first, second = read(tmp_path / "a.json")["images"]
    assert first["file_name"] == "\\xff.jpg" and base64.b64decode(first["file_name_bytes"]) == b"\xff.jpg"
    assert second["file_name"] == "\u732b.jpg" and "file_name_bytes" not in second


@pytest.mark.parametrize("label", [0, 3])
def test_unknown_classes_are_refused_and_leave_no_trace(tmp_path, label):
    good, bad = np.array([[True, False]]), np.array([[False, True]])
    with CocoWriter(tmp_path / "a.json", class_names(2)) as coco:
        with pytest.raises(ValueError, match=f"from 1 to 2, got {label}"):
            coco.add(photograph("bad.jpg", (1, 2), [(good, 1, 1.0), (bad, label, 1.0)]))
        coco.add(photograph("good.jpg", (1, 2), [(good, 2, 1.0)]))
    content = read(tmp_path / "a.json")
    assert [image["file_name"] for image in content["images"]] == ["good.jpg"]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_unfinished_run_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "annotations.json"
    path.write_text("before")
    with pytest.raises(error), CocoWriter(path, class_names(1)) as coco:
        coco.add(photograph("a.jpg", (2, 2), [(np.ones((2, 2), bool), 1, 1.0)]))
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_one_clear_message(tmp_path):
    with pytest.raises(OutputError, match="folder doesn't exist"), CocoWriter(tmp_path / "missing" / "a.json", []):
        pass


def test_full_disk_while_buffering_is_one_clear_message(tmp_path, monkeypatch):
    mask = golden_mask("photograph")
    with CocoWriter(tmp_path / "a.json", class_names(1)) as coco:
        coco.add(photograph("a.jpg", mask.shape, [(mask, 1, 1.0)]))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.write", full)
    with (
        pytest.raises(OutputError, match=r"a\.json.*No space left"),
        CocoWriter(tmp_path / "a.json", class_names(1)) as coco,
    ):
        coco.add(photograph("b.jpg", mask.shape, [(mask, 1, 1.0)]))
    assert len(read(tmp_path / "a.json")["images"]) == 1


def test_segmentation_of_either_kind():
    mask = golden_mask("holes")
    assert segmentation(mask) == {"size": list(mask.shape), "counts": GOLDEN_VALUES["holes"]["counts"]}
    assert segmentation(mask, tolerance=0) == GOLDEN_VALUES["holes"]["polygons"]

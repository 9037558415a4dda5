"""Exports of a finished run: each format read back by an independent reader and compared with the masks."""

from __future__ import annotations

import errno
import json
import os
import sys
import urllib.parse
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from vitnp.cli.main import main
from vitnp.errors import OutputError, UsageError
from vitnp.export.collection_outputs import CollectionInfo
from vitnp.export.formats.brush_rle import encode_brush
from vitnp.export.formats.settings import FormatSettings
from vitnp.export.formats.table import FORMATS, export_formats
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.export.results_file import Results, ResultsWriter
from vitnp.export.rewrite import rewrite
from vitnp.io.find import FOLDER_MARKER, find_photographs
from vitnp.masks.polygons import fill_polygon
from vitnp.options import EXPORT_FORMATS

NAMES = ("cat", 'dog: "big" #1')


def region_map(seed: int) -> np.ndarray:
    """A ring of class 1 and a disc of class 2 in two parts, or nothing."""
    y, x = np.mgrid[:90, :120]
    regions = np.zeros((90, 120), np.uint8)
    if seed % 4 == 3:
        return regions
    distance = np.hypot(y - 45, x - 35 - seed)
    regions[(distance < 30) & (distance > 12)] = 1
    regions[np.hypot(y - 20, x - 95) < 14] = 2
    regions[np.hypot(y - 70, x - 95) < 12] = 2
    return regions


FILES = ["a/x.jpg", "b/x.jpg", "b/x.png", "a_x.jpg", "ümläut 猫.png", "e.png"]


@pytest.fixture
def out(tmp_path):
    """Write the photographs and the results of a run."""
    (tmp_path / "out").mkdir()
    with ResultsWriter(tmp_path / "out" / "results.jsonl", NAMES, has_classes=True) as results:
        for seed, name in enumerate(FILES):
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (120, 90), (40 * seed, 40 * seed, 40 * seed)).save(path)
            regions = region_map(seed)
            records = (RegionRecord(1, 0.75, 0.5, 9), RegionRecord(2, 0.25, 0.5, 4)) if regions.any() else ()
            results.add(PhotographRecord(name, 0.5, records, lambda regions=regions: regions, lambda: None, path))
    return tmp_path / "out"


def iou(a, b):
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0


def filled(points, shape=(90, 120)):
    return fill_polygon(np.asarray(points, float).ravel().tolist(), shape)


def test_every_format_of_the_options_is_in_the_table():
    assert tuple(FORMATS) == EXPORT_FORMATS


def test_results_are_read_as_they_were_written(out):
    results = Results.read(out)
    assert results.names == NAMES and results.has_classes and results.n_photographs == len(FILES)
    for seed, (name, photograph) in enumerate(zip(FILES, results.photographs(), strict=True)):
        assert photograph.name == name and photograph.path.samefile(out.parent / "in" / name)
        np.testing.assert_array_equal(photograph.region_map, region_map(seed))
        assert [region.label for region in photograph.regions] == ([1, 2] if region_map(seed).any() else [])
        assert photograph.load_thumbnail().shape[2] == 3


def test_results_move_with_their_photographs(out):
    moved = out.parent.parent / "elsewhere"
    os.rename(out.parent, moved)
    assert all(photograph.path.is_file() for photograph in Results.read(moved / "out").photographs())


@pytest.mark.parametrize("tolerance", [None, 1.0])
def test_coco(out, tolerance):
    (folder,) = export_formats(out, ["coco"], tolerance=tolerance)
    content = json.loads((folder / "annotations" / "instances_default.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    assert len(set(names)) == len(FILES) and all((folder / "images" / name).is_file() for name in names)
    assert [category["name"] for category in content["categories"]] == list(NAMES)
    for annotation in content["annotations"]:
        mask = region_map(annotation["image_id"] - 1) == annotation["category_id"]
        if tolerance is None:
            assert annotation["segmentation"]["size"] == [90, 120] and annotation["area"] == mask.sum()
        else:
            painted = np.logical_xor.reduce([filled(ring) for ring in annotation["segmentation"]])
            assert iou(painted, mask) > 0.95
            assert annotation["area"] == pytest.approx(mask.sum(), rel=0.05)
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            np.testing.assert_allclose(annotation["bbox"], box, atol=1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("tolerance", [None, 1.0])
def test_coco_as_pycocotools_reads_it(out, tolerance, capsys):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    (folder,) = export_formats(out, ["coco"], tolerance=tolerance)
    loaded = coco.COCO(str(folder / "annotations" / "instances_default.json"))
    assert len(loaded.imgs) == len(FILES)
    for annotation in loaded.anns.values():
        mask = loaded.annToMask(annotation).astype(bool)
        truth = region_map(annotation["image_id"] - 1) == annotation["category_id"]
        assert iou(mask, truth) > (0.95 if tolerance else 0.9999)


def test_yolo(out):
    (folder,) = export_formats(out, ["yolo"], split=0.34, seed=3)
    text = (folder / "data.yaml").read_text(encoding="utf-8")
    assert "train: images/train\nval: images/val\n" in text and '  1: "dog: \\"big\\" #1"\n' in text
    parts = {part: sorted((folder / "images" / part).iterdir()) for part in ("train", "val")}
    assert len(parts["val"]) == 2 and len(parts["train"]) == len(FILES) - 2
    seen = set()
    for part, images in parts.items():
        for image in images:
            seed = round(Image.open(image).convert("RGB").getpixel((0, 0))[0] / 40)
            seen.add(seed)
            lines = (folder / "labels" / part / f"{image.name.rpartition('.')[0]}.txt").read_text().splitlines()
            assert len(lines) == (2 if region_map(seed).any() else 0)
            for line in lines:
                label, *points = line.split()
                points = np.array(points, float).reshape(-1, 2)
                assert (points >= 0).all() and (points <= 1).all()
                assert iou(filled(points * (120, 90)), region_map(seed) == int(label) + 1) > 0.95
    assert seen == set(range(len(FILES)))


def test_the_split_is_seeded_and_both_parts_have_photographs():
    settings = FormatSettings(("a",), 10, split=0.01)
    assert len(settings.validation) == 1 and settings.validation == FormatSettings(("a",), 10, split=0.01).validation
    assert len(FormatSettings(("a",), 10, split=0.99).validation) == 9
    assert not FormatSettings(("a",), 10, split=0).validation
    assert len({FormatSettings(("a",), 100, seed=seed).validation for seed in range(5)}) == 5


def test_voc(out):
    (folder,) = export_formats(out, ["voc"])
    rows = [line.split(":") for line in (folder / "labelmap.txt").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        ["background", "0,0,0"], ["cat", "128,0,0"], ['dog- "big" -1', "0,128,0"],
    ]  # fmt: skip
    listed = [
        line for part in ("train", "val")
        for line in (folder / "ImageSets" / "Segmentation" / f"{part}.txt").read_text().splitlines()
    ]  # fmt: skip
    assert len(set(listed)) == len(FILES)
    stems = {path.name.rpartition(".")[0] for path in (folder / "JPEGImages").iterdir()}
    assert stems == set(listed)
    shown = 0
    for stem in listed:
        with Image.open(folder / "SegmentationClass" / f"{stem}.png") as picture:
            assert picture.mode == "P" and picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            labels = np.asarray(picture)
        objects = np.asarray(Image.open(folder / "SegmentationObject" / f"{stem}.png"))
        assert any(np.array_equal(objects, region_map(seed)) for seed in range(len(FILES)))
        np.testing.assert_array_equal(labels, objects)  # region 1 is of class 1, region 2 of class 2
        shown += labels.any()
    assert shown == sum(region_map(seed).any() for seed in range(len(FILES)))


def test_labelme(out):
    (folder,) = export_formats(out, ["labelme"])
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert len(records) == len(FILES)
    for record in records:
        with Image.open(folder / record["imagePath"]) as picture:
            assert picture.size == (record["imageWidth"], record["imageHeight"]) and record["imageData"] is None
        assert {shape["shape_type"] for shape in record["shapes"]} <= {"polygon"}
        if record["shapes"]:
            assert [shape["label"] for shape in record["shapes"]] == [NAMES[0], NAMES[1], NAMES[1]]
            ring, *parts = (filled(shape["points"]) for shape in record["shapes"])
            maps = [region_map(seed) for seed in range(len(FILES))]
            assert max(iou(ring, regions == 1) for regions in maps) > 0.95
            assert iou(parts[0] | parts[1], maps[0] == 2) > 0.95


def decode_brush(data, shape):
    """Decode bit by bit, as the format's description says."""
    bits = "".join(f"{byte:08b}" for byte in data)
    position = 0

    def read(count):
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    number, width = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < number:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(width)] * length if repeated else [read(width) for _ in range(length)]
    pixels = np.array(values).reshape(*shape, 4)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 3] == 255


@pytest.mark.parametrize("seed", range(6))
def test_brush_is_decoded_to_the_mask(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((7, 5)) < 0.5, np.ones((3**seed, 2), bool)) if seed < 5 else np.zeros((200, 200), bool)
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), mask.shape), mask)


@pytest.mark.parametrize("tolerance", [None, 1.0])
def test_label_studio(out, tolerance):
    (folder,) = export_formats(out, ["labelstudio"], tolerance=tolerance)
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [task["data"]["name"] for task in tasks] == FILES
    labels = xml.etree.ElementTree.parse(folder / "config.xml").getroot()
    assert [label.get("value") for label in labels.iter("Label")] == list(NAMES)
    for seed, task in enumerate(tasks):
        place = urllib.parse.unquote(task["data"]["image"].partition("?d=")[2])
        assert (out / place).is_file()
        painted = np.zeros((90, 120), np.uint8)
        for result in task["predictions"][0]["result"]:
            assert (result["original_width"], result["original_height"]) == (120, 90)
            value = result["value"]
            if tolerance is None:
                painted[decode_brush(value["rle"], (90, 120))] = NAMES.index(value["brushlabels"][0]) + 1
            else:
                points = np.array(value["points"]) * (1.2, 0.9)
                painted[filled(points)] = NAMES.index(value["polygonlabels"][0]) + 1
        for label in (1, 2):
            assert iou(painted == label, region_map(seed) == label) >= (1 if tolerance is None else 0.95)


def test_photographs_are_linked_or_copied(out):
    (folder,) = export_formats(out, ["coco"])
    linked = sorted((folder / "images").iterdir())
    assert all(any(path.samefile(out.parent / "in" / name) for name in FILES) for path in linked)
    (folder,) = export_formats(out, ["coco"], copy=True)
    copied = sorted((folder / "images").iterdir())
    assert [path.name for path in copied] == [path.name for path in linked]
    assert not any(path.samefile(out.parent / "in" / name) for path in copied for name in FILES)
    assert copied[0].read_bytes() in [(out.parent / "in" / name).read_bytes() for name in FILES]


def test_nothing_half_written_and_nothing_foreign_replaced(out):
    export_formats(out, ["coco", "yolo"])
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    (out.parent / "in" / "e.png").unlink()
    with pytest.raises(OutputError, match="e.png: this photograph is gone"):
        export_formats(out, ["coco", "yolo"])
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    (out / "yolo" / FOLDER_MARKER).unlink()
    with pytest.raises(OutputError, match="vitnp did not make it"):
        export_formats(out, ["yolo"])


@pytest.mark.parametrize("name", ["secret.txt", "larger.png"])
def test_results_that_name_another_file_export_nothing(out, name):
    (out.parent / "secret.txt").write_text("not for others")
    Image.new("RGB", (121, 90)).save(out.parent / "larger.png")
    lines = (out / "results.jsonl").read_text().replace("../in/e.png", f"../{name}")
    (out / "results.jsonl").write_text(lines)
    with pytest.raises(OutputError, match=f"{name}: this is not the photograph that was segmented"):
        export_formats(out, ["coco"], copy=True)
    assert not (out / "coco").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"size": [2**40, 2**40]}, {"size": [90.0, 120]}, {"size": None}, {"confidence": float("nan")},
        {"regions": {"": 0}}, {"category": "a"}, {"outputs": 3}, {"confidence": 10**400}, {"size": [0, 0]},
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_line_of_results_is_named(out, change):
    first, line, *others = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join([first, json.dumps(json.loads(line) | change) + "\n", *others]))
    with pytest.raises(OutputError, match="line 2 is no photograph"):
        export_formats(out, ["coco"])


def test_an_earlier_export_is_back_if_the_new_one_cannot_take_its_place(out, monkeypatch):
    def content():
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    export_formats(out, ["coco"])
    before, rename, targets = content(), os.rename, []

    def fail_the_second_time(source, target):
        targets.append(target)
        if len(targets) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_the_second_time)
    with pytest.raises(OutputError, match="coco: No space left on device; choose another place"):
        export_formats(out, ["coco"])
    assert content() == before
    assert not list(out.glob(".vitnp-*"))


def test_photographs_of_an_export_are_not_found_again(out):
    export_formats(out, ["coco"], copy=True)
    (out.parent / "in" / "export").mkdir()
    (out / "coco").rename(out.parent / "in" / "export" / "coco")
    found = [photograph.relative.as_posix() for photograph in find_photographs([out.parent / "in"])]
    assert sorted(found) == sorted(FILES)
    assert len(find_photographs([out.parent / "in" / "export" / "coco"])) == len(FILES), "it is named itself"


def test_same_run_same_bytes(out):
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    export_formats(out, EXPORT_FORMATS)
    once = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    export_formats(out, EXPORT_FORMATS)
    again = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert once == again and first.items() <= once.items()


def test_too_many_classes_for_voc(tmp_path):
    with pytest.raises(UsageError, match="at most 254 classes, got 255"):
        FORMATS["voc"](tmp_path / "voc", FormatSettings(tuple("x" * 255), 1))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}\n", b"[1]\n", b'{"vitnp": "results", "version": 2, "classes": [], "has_classes": true}\n', b"\xff\n"],
)
def test_damaged_results_are_refused(tmp_path, content):
    (tmp_path / "results.jsonl").write_bytes(content)
    with pytest.raises(OutputError, match=r"results\.jsonl: .*again"):
        Results.read(tmp_path)


@pytest.mark.parametrize("damage", ["{", '{"name": 1}', '{"counts": "1"}'])
def test_a_damaged_line_is_named(out, damage):
    lines = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join([*lines[:2], damage, *lines[3:]]) + "\n")
    with pytest.raises(OutputError, match="line 3 is no photograph"):
        export_formats(out, ["coco"])


def test_class_names_reach_every_output(out):
    rewrite(out, names=["apple", "pear"])
    assert Results.read(out).names == ("apple", "pear")
    records = json.loads((out / "classes.json").read_text())["classes"]
    assert [record["name"] for record in records] == ["apple", "pear"]
    assert "apple" in (out / "gallery.html").read_text(encoding="utf-8")
    np.testing.assert_array_equal(next(Results.read(out).photographs()).region_map, region_map(0))


def test_info_names_default_to_numbers():
    assert CollectionInfo(3, 2, True).names == ["class 1", "class 2"]


# --- The command -----------------------------------------------------------------------------------------------------


def test_command(out, tmp_path, capsys):
    assert main(["export", str(out), "--format", "coco,yolo", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["format"] for line in lines] == ["coco", "yolo"] and (out / "yolo" / "data.yaml").is_file()
    (tmp_path / "names.txt").write_text("apple\npear\n")
    assert main(["export", str(out), "--names", str(tmp_path / "names.txt"), "--polygons", "--quiet"]) == 0
    content = json.loads((out / "annotations.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["apple", "pear"]
    assert isinstance(content["annotations"][0]["segmentation"], list)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to do"),
        (["--format", "coco,pascal"], "--format must list some of coco, yolo, voc, labelme or labelstudio, got pascal"),
        (["--format", ","], "got nothing"),
    ],
)
def test_command_refuses(out, arguments, message):
    with pytest.raises(UsageError, match=message):
        main(["export", str(out), *arguments])


def test_command_refuses_a_folder_without_results_and_wrong_numbers_of_names(out, tmp_path):
    with pytest.raises(OutputError, match=r"no results\.jsonl there"):
        main(["export", str(tmp_path / "in"), "--format", "coco"])
    (tmp_path / "names.txt").write_text("apple\n")
    with pytest.raises(UsageError, match="has 2 classes, so 2 names are needed"):
        main(["export", str(out), "--names", str(tmp_path / "names.txt")])
    (tmp_path / "names.txt").write_text("apple\napple\n")
    with pytest.raises(UsageError, match="must differ"):
        main(["export", str(out), "--names", str(tmp_path / "names.txt")])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--polygons", "X"], 1.0),
        (["X", "--polygons"], 1.0),
        (["--polygons", "0.5", "X"], 0.5),
        (["--polygons=2", "X"], 2.0),
    ],
)
def test_polygons_never_take_the_photograph_for_a_number(arguments, expected):
    from vitnp.cli.segment import build_parser

    args = build_parser().parse_args(arguments)
    assert args.photographs == ["X"] and args.polygons == expected


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_names_that_are_not_unicode(tmp_path):
    name = os.fsdecode(b"s\xe9/caf\xe9\n.jpg")
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    Image.new("RGB", (120, 90)).save(path)
    (tmp_path / "out").mkdir()
    regions, mask = region_map(0), tmp_path / "out" / os.fsdecode(b"caf\xe9_mask.png")
    record = PhotographRecord(
        name, 0.5, (RegionRecord(1, 0.75, 0.5, 9),), lambda: regions == 1, lambda: None, path, {"mask": mask}
    )
    with ResultsWriter(tmp_path / "out" / "results.jsonl", NAMES, has_classes=True) as results:
        results.add(record)
    lines = (tmp_path / "out" / "results.jsonl").read_text("ascii").splitlines()
    json.dumps(json.loads(lines[1]), ensure_ascii=False).encode("utf-8")  # no lone surrogates
    (read,) = Results.read(tmp_path / "out").photographs()
    assert (read.name, read.path, read.outputs) == (name, path, {"mask": mask})
    folders = export_formats(tmp_path / "out", EXPORT_FORMATS)
    images = []
    for folder in folders:
        for file in folder.rglob("*"):
            str(file.relative_to(tmp_path)).encode("utf-8")
            if file.suffix in (".json", ".txt", ".xml", ".yaml"):
                file.read_text("utf-8")
        images += [file.name for file in folder.rglob("*.jpg")]
    assert set(images) == {"s_xe9_caf_xe9_n.jpg"} and len(images) == len(EXPORT_FORMATS)


def test_what_a_killed_export_left_is_removed(out):
    left = out / f".vitnp-{'0' * 16}.part"
    left.mkdir()
    (left / "file").write_text("half")
    export_formats(out, ["coco"])
    assert not left.exists() and not list(out.glob(".vitnp-*"))

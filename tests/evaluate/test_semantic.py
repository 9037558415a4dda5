"""Scores of classes: against independent counting, and the same set in every layout."""

from __future__ import annotations

import collections
import io
import itertools
import json
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitnp.cli import evaluate, shared
from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.labeled import LabeledSet, Sample
from vitnp.evaluate.data.layouts import detect_layout
from vitnp.evaluate.data.voc import VOC_CLASSES
from vitnp.evaluate.semantic import score_labels
from vitnp.segmenter import Segmenter


def labeled_of(truths, classes):
    """A set of label maps in memory."""

    def loader(truth):
        def load(shape):
            if isinstance(truth, Exception):
                raise truth
            assert truth.shape == shape
            return truth

        return load

    samples = tuple(Sample(str(place), None, loader(truth)) for place, truth in enumerate(truths))
    return LabeledSet(samples, ("background", *(f"class {number}" for number in range(1, classes))))


def counted(truths, found):
    """Pixels of each (class, cluster), one pixel at a time."""
    counts = collections.Counter()
    for truth, labels in zip(truths, found):
        for pair in zip(truth.ravel().tolist(), labels.ravel().tolist()):
            if pair[0] != 255:
                counts[pair] += 1
    return counts


def ious(counts, assignment, classes):
    """Exact IoU of each class, None where it doesn't occur, once clusters have classes."""
    result = []
    for label in range(classes):
        both = sum(n for (true, cluster), n in counts.items() if true == label and assignment[cluster] == label)
        either = sum(n for (true, cluster), n in counts.items() if true == label or assignment[cluster] == label)
        result.append(Fraction(both, either) if either else None)
    return result


def test_scores_by_hand():
    # Clusters 1 and 2 are classes 2 and 1. Class 1: 2 of 3 pixels found, 1 wrong: 2/4. Class 2: 2 of 2, 1 wrong: 2/3.
    # Background: 4 of 5 found, 0 wrong -> 4/5 with the ignored pixel left out.
    truths = [np.array([[0, 0, 1, 1, 1]], np.uint8), np.array([[0, 0, 0, 2, 2, 255]], np.uint8)]
    found = [np.array([[0, 0, 2, 2, 1]], np.uint8), np.array([[0, 0, 2, 1, 1, 2]], np.uint8)]
    scored = score_labels(labeled_of(truths, 3), found, 2)
    assert scored.images == 2
    assert scored.classes == pytest.approx({"background": 4 / 5, "class 1": 2 / 4, "class 2": 2 / 3})
    assert scored.scores["miou"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert scored.scores["pixel_accuracy"] == pytest.approx(8 / 10)
    assert scored.scores["foreground_iou"] == pytest.approx(5 / 6)
    # The photographs by themselves: (1 + 2/3 + 0) / 3 and (2/3 + 0 + 1) / 3.
    assert scored.ranking == pytest.approx({0: 5 / 9, 1: 5 / 9})


@pytest.mark.parametrize("seed", range(6))
def test_hungarian_against_all_permutations(seed):
    random = np.random.default_rng(seed)
    classes, clusters = int(random.integers(2, 6)), int(random.integers(1, 6))
    shapes = [tuple(random.integers(1, 9, 2)) for _ in range(5)]
    truths = [random.choice([*range(classes), 255], shape).astype(np.uint8) for shape in shapes]
    found = [random.integers(0, clusters + 1, shape).astype(np.uint8) for shape in shapes]
    counts = counted(truths, found)

    def pair_iou(label, cluster):
        both = counts[label, cluster]
        either = sum(n for (true, own), n in counts.items() if true == label or own == cluster)
        return Fraction(both, either) if either else Fraction(0)

    # Every way to give clusters classes one to one, unmatched ones to the background.
    slots = [*range(1, classes), *[0] * clusters]
    best = max(
        set(itertools.permutations(slots, clusters)),
        key=lambda labels: sum(pair_iou(label, cluster) for cluster, label in enumerate(labels, 1) if label),
    )
    expected = ious(counts, (0, *best), classes)
    scored = score_labels(labeled_of(truths, classes), found, clusters)
    present = [value for value in expected if value is not None]
    assert scored.scores["miou"] == pytest.approx(float(sum(present) / len(present)), abs=1e-12)
    for value, exact in zip(scored.classes.values(), expected):
        assert np.isnan(value) if exact is None else value == pytest.approx(float(exact), abs=1e-12)
    assert score_labels(labeled_of(truths, classes), found, clusters, n_threads=3).scores == scored.scores


def test_many_to_one_with_more_clusters_than_a_byte_counts():
    random = np.random.default_rng(5)
    truths = [random.choice([0, 1, 2, 3, 255], (40, 30)).astype(np.uint8) for _ in range(3)]
    found = [random.integers(0, 301, (40, 30)).astype(np.uint16) for _ in range(3)]
    counts = counted(truths, found)
    majority = [0] + [max(range(4), key=lambda label: (counts[label, cluster], -label)) for cluster in range(1, 301)]
    expected = [float(value) for value in ious(counts, majority, 4)]
    scored = score_labels(labeled_of(truths, 4), found, 300, "many-to-one")
    assert list(scored.classes.values()) == pytest.approx(expected, abs=1e-12)
    assert scored.scores["miou"] > score_labels(labeled_of(truths, 4), found, 300).scores["miou"]


def test_photographs_that_failed_do_not_count():
    truth = np.array([[0, 1]], np.uint8)
    damaged, unread = ImageError("b.png: damaged; get a sound copy"), ImageError("c.jpg: empty; get a sound copy")
    scored = score_labels(labeled_of([truth, damaged, truth], 2), [truth, truth, None], 1, failures={2: unread})
    assert scored.images == 1 and scored.failures == [damaged, unread] and list(scored.ranking) == [0]
    with pytest.raises(UsageError, match="none of the 1 photographs could be scored; the first: b.png"):
        score_labels(labeled_of([damaged], 2), [truth], 1)
    with pytest.raises(UsageError, match="every pixel of the label maps is ignored"):
        score_labels(labeled_of([np.full((1, 2), 255, np.uint8)], 2), [truth], 1)
    with pytest.raises(UsageError, match="matching must be hungarian or many-to-one"):
        score_labels(labeled_of([truth], 2), [truth], 1, "best")


def test_label_maps_are_decoded_one_at_a_time():
    made_so_far, most = [], 0

    class Map(np.ndarray):
        pass

    class Found(collections.abc.Sequence):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            nonlocal most
            made = np.zeros((3, 3), np.uint8).view(Map)
            made_so_far.append(weakref.ref(made))
            most = max(most, sum(reference() is not None for reference in made_so_far))
            return made

    score_labels(labeled_of([np.zeros((3, 3), np.uint8)] * 50, 2), Found(), 1, n_threads=1)
    assert most <= 2


# One set in every layout.

CATEGORIES = ("bird", "cat", "dog")
COLORS = {"bird": (220, 60, 40), "cat": (40, 90, 220), "dog": (235, 220, 60)}


def make_set(folder, each=3, side=96):
    """Photographs of discs whose color is their class, and their truth: {class/number: (jpeg bytes, mask)}."""
    random = np.random.default_rng(2)
    i, j = np.mgrid[:side, : side + 32]
    made = {}
    for category in CATEGORIES:
        for number in range(each):
            row, column = random.integers(30, side - 30), random.integers(35, side - 3)
            mask = (i - row) ** 2 + (j - column) ** 2 < 26**2
            rgb = np.where(mask[..., None], COLORS[category], (90, 110, 90)) + random.normal(0, 6, (*mask.shape, 3))
            name = f"{category}{number}"
            path = folder / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(path, quality=95)
            made[name] = (category, path.read_bytes(), mask)
    return made


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_bytes(content)


def as_voc(made, root):
    voc = root / "VOCdevkit" / "VOC2012"
    for name, (category, jpeg, mask) in made.items():
        put(voc / "JPEGImages" / f"{name}.jpg", jpeg)
        put(voc / "SegmentationClass" / f"{name}.png", mask * np.uint8(VOC_CLASSES.index(category)))
        put(voc / "SegmentationClassAug" / f"{name}.png", np.full(mask.shape, 255, np.uint8) * ~mask)
    put(voc / "ImageSets" / "Segmentation" / "val.txt", "\n".join(made))
    put(voc / "ImageSets" / "Segmentation" / "train.txt", "\n".join(list(made)[:4]))
    return [root / "VOCdevkit"]


def as_coco(made, root):
    images, annotations = [], []
    for number, (name, (category, jpeg, mask)) in enumerate(made.items(), 1):
        put(root / "images" / f"{name}.jpg", jpeg)
        height, width = mask.shape
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
        counts = np.diff([0, *changes, mask.size]).tolist()
        annotations.append({
            "id": number, "image_id": number, "category_id": 10 + CATEGORIES.index(category), "iscrowd": 0,
            "segmentation": {"size": [height, width], "counts": counts},
        })  # fmt: skip
    categories = [{"id": 10 + rank, "name": category} for rank, category in enumerate(CATEGORIES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    put(root / "instances.json", json.dumps(content))
    return [root / "images", root / "instances.json"]


def as_coseg(made, root):
    for name, (category, jpeg, mask) in made.items():
        put(root / "images" / category / f"{name}.jpg", jpeg)
        put(root / "masks" / category / f"{name}.png", mask * np.uint8(255))
    return [root / "images", root / "masks"]


def as_folder(made, root):
    for name, (category, jpeg, mask) in made.items():
        put(root / "images" / f"{name}.jpg", jpeg)
        put(root / "labels" / f"{name}.png", mask * np.uint8(1 + CATEGORIES.index(category)))
    return [root / "images", root / "labels"]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic")
    made = make_set(folder / "originals")
    makers = {"voc": as_voc, "coco": as_coco, "coseg": as_coseg, "folder": as_folder}
    return made, {layout: list(map(str, make(made, folder / layout))) for layout, make in makers.items()}


def evaluated(capsys, *argv):
    status = evaluate.main(["--task", "semantic", "--size", "96", "--quiet", "--json", *argv])
    out = capsys.readouterr().out
    assert status == 0 and out.count("\n") == 1
    return json.loads(out)


@pytest.mark.slow(reason="fits several collections")
def test_every_layout_gives_the_same_scores(layouts, capsys, tmp_path, builtin):
    made, places = layouts
    found = {
        layout: evaluated(capsys, *where, "--classes", "3", "--cache", str(tmp_path))
        for layout, where in places.items()
    }
    for layout, scores in found.items():
        assert scores["images"] == 9
        for key in ("miou", "pixel_accuracy", "foreground_iou"):
            assert scores[key] == found["coseg"][key], layout
        names = {name: str(1 + rank) if layout == "folder" else name for rank, name in enumerate(CATEGORIES)}
        own = {name: scores["classes"][called] for name, called in names.items()}
        assert own == {name: found["coseg"]["classes"][name] for name in CATEGORIES}
    assert list(found["coseg"]["classes"]) == ["background", *CATEGORIES]
    assert found["voc"]["classes"]["sofa"] is None

    # And they are what counting the Segmenter's labels one by one gives.
    photographs = [Image.open(io.BytesIO(jpeg)) for _, jpeg, _ in made.values()]
    segmenter = Segmenter(builtin, 3, short_side=96).fit(photographs)
    truths = [mask * np.uint8(1 + CATEGORIES.index(category)) for category, _, mask in made.values()]
    counts = counted(truths, [segmenter.labels[place] for place in range(9)])
    best = max(
        float(sum(value or 0 for value in ious(counts, (0, *labels), 4)) / 4)
        for labels in itertools.permutations((1, 2, 3))
    )
    assert found["coseg"]["miou"] == pytest.approx(best, abs=1e-12)
    # Discs told apart by their color alone are easy.
    assert best > 0.5


def test_layouts_are_detected(layouts, tmp_path):
    made, places = layouts
    for layout, where in places.items():
        assert detect_layout(list(map(Path, where))) == layout
    # Label maps in subfolders are no categories' masks.
    for name, (category, jpeg, mask) in made.items():
        put(tmp_path / "images" / category / f"{name}.jpg", jpeg)
        put(tmp_path / "labels" / category / f"{name}.png", mask * np.uint8(1 + CATEGORIES.index(category)))
    assert detect_layout([tmp_path / "images", tmp_path / "labels"]) == "folder"


@pytest.mark.slow(reason="fits several collections")
def test_options_of_the_set(layouts, capsys, tmp_path):
    _, places = layouts
    assert evaluated(capsys, *places["voc"], "--split", "train", "--classes", "2")["images"] == 4
    names, table = tmp_path / "names.txt", tmp_path / "merge.txt"
    names.write_text("nothing\nbird\ncat\ndog\n")
    table.write_text("bird, feathers\ncat, fur\ndog, fur\n")
    named = evaluated(capsys, *places["folder"], "--names", str(names), "--cache", str(tmp_path))
    assert list(named["classes"]) == ["nothing", *CATEGORIES]
    merged = evaluated(capsys, *places["coseg"], "--merge", str(table), "--cache", str(tmp_path))
    assert list(merged["classes"]) == ["background", "feathers", "fur"]
    over = evaluated(capsys, *places["coseg"], "--clusters", "6", "--cache", str(tmp_path))
    strict = evaluated(capsys, *places["coseg"], "--clusters", "6", "--matching", "hungarian", "--cache", str(tmp_path))
    assert over["pixel_accuracy"] >= strict["pixel_accuracy"]


def test_augmented_labels_are_another_folder(layouts, capsys):
    _, places = layouts
    with pytest.raises(SystemExit) as exit_:
        argv = [*places["voc"], "--labels", "SegmentationClassAug", "--classes", "3"]
        shared.run(lambda _: evaluate.main(["--task", "semantic", "--size", "96", *argv]))
    # Those maps say background on the disc and 255 elsewhere: background alone is scored, and that works.
    assert exit_.value.code == 0
    table = capsys.readouterr().out
    assert "IoU background" in table and "IoU sofa" in table


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["coseg", "--levels", "image"], "leave out --levels"),
        (["coseg", "--levels", "each"], "leave out --levels"),
        (["coseg", "--classes", "3", "--clusters", "5"], "give one of them"),
        (["coseg", "--clusters", "500"], "n_classes must be at most the number of regions, 9 in"),
        (["coseg", "--split", "val"], "--split is for the layout voc, but this set has coseg"),
        (["voc", "--split", "test"], "choose among train, val"),
        (["voc", "--layout", "coco"], "got 1 paths instead of 2"),
        (["coseg", "--layout", "voc"], "got 2 paths instead of 1"),
        (["coco", "--names", "x"], "--names is for the layout folder"),
    ],
)
def test_wrong_usage(layouts, argv, words, capsys):
    _, places = layouts
    with pytest.raises(SystemExit) as exit_:
        shared.run(
            lambda _: evaluate.main(["--task", "semantic", "--quiet", "--size", "96", *places[argv[0]], *argv[1:]])
        )
    captured = capsys.readouterr()
    assert exit_.value.code == 2 and captured.out == ""
    assert words in captured.err and captured.err.count("\n") == 1


@pytest.mark.slow(reason="several seeds")
def test_seeds_and_report(layouts, capsys, tmp_path):
    _, places = layouts
    argv = [*places["coseg"], "--cache", str(tmp_path / "cache")]
    alone = [evaluated(capsys, *argv, "--seed", str(seed)) for seed in (4, 5, 6)]
    found = evaluated(
        capsys, *places["coseg"], "--seed", "4", "--seeds", "3",
        "--report", str(tmp_path / "report"), "--csv", str(tmp_path / "t.csv"),
    )  # fmt: skip
    assert [run["miou"] for run in found["seeds"]] == [run["miou"] for run in alone]
    assert found["miou"] == pytest.approx(np.mean([run["miou"] for run in alone]))
    assert found["deviation"]["miou"] == pytest.approx(np.std([run["miou"] for run in alone], ddof=1))
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["best.png", "median.png", "worst.png"]
    head, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert head == "score,mean,deviation,seed 4,seed 5,seed 6"
    assert [float(cell) for cell in rows[1].split(",")[3:]] == [run["miou"] for run in alone]

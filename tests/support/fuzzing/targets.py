"""Readers to fuzz: for each, sound files to begin with, how to change them, and what a sound answer looks like."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
import random_vit
from PIL import Image, features

from fuzzing import json_targets, mutations
from fuzzing.json_targets import SHAPE
from fuzzing.mutations import Mutation
from vitnp import Segmenter, ViT, ViTConfig, load_vit
from vitnp.checkpoints.safetensors_io import write_safetensors
from vitnp.checkpoints.torch_io import read_torch_file
from vitnp.evaluate.data.class_tables import read_class_table
from vitnp.evaluate.data.label_images import read_labels
from vitnp.evaluate.data.pairs import read_truth
from vitnp.evaluate.data.voc import read_split
from vitnp.evaluate.data.voc_boxes import read_boxes
from vitnp.features.shards import SUFFIX
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.io.decode import read_image
from vitnp.io.stamp import SIDECAR_SUFFIX, stamp
from vitnp.io.write import write_npz, write_png, write_sidecar
from vitnp.method.collection import Collection

GOLDEN = pathlib.Path(__file__).resolve().parent.parent.parent / "golden" / "torch_files"
MAX_PIXELS = 1_000_000
CLASSES = ("background", "cat", "dog", "bird")


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes
    ----------
    seeds : callable
        ``seeds(folder)`` returns sound files by name, as bytes; `folder` is theirs to use.
    read : callable
        ``read(path)`` reads a file and raises AssertionError if the answer is unsound.
    mutations : tuple of callable
    """

    seeds: Callable[[pathlib.Path], dict[str, bytes]]
    read: Callable[[pathlib.Path], object]
    mutations: tuple[Mutation, ...] = (mutations.change_bytes,)


# --- images and masks -------------------------------------------------------------------------------------------------


def images(folder: pathlib.Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    rgb = (np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1)))).astype(np.uint8)
    picture = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6
    cutout = picture.copy()
    cutout.putalpha(Image.fromarray(rgb[..., 0]))
    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    pictures: dict[str, tuple[Image.Image, dict]] = {
        "a.jpg": (picture, {}), "progressive.jpg": (picture, {"progressive": True, "exif": exif}),
        "cmyk.jpg": (picture.convert("CMYK"), {}), "gray.jpg": (picture.convert("L"), {}),
        "a.png": (picture, {"exif": exif}), "alpha.png": (cutout, {}), "palette.png": (picture.convert("P"), {}),
        "key.png": (picture, {"transparency": (0, 0, 0)}), "deep.png": (deep, {}),
        "bit.png": (picture.convert("1"), {}),
        "a.gif": (picture, {}), "a.bmp": (picture, {}), "a.tif": (picture, {}), "deep.tif": (deep, {}),
        "float.tif": (Image.fromarray(rgb[..., 0] / np.float32(255)), {}),
        "lzw.tif": (picture, {"compression": "tiff_lzw"}), "deflate.tif": (cutout, {"compression": "tiff_deflate"}),
        "jpeg.tif": (picture, {"compression": "jpeg"}), "fax.tif": (picture.convert("1"), {"compression": "group4"}),
        "cmyk.tif": (picture.convert("CMYK"), {}), "lab.tif": (picture.convert("LAB"), {}),
    }  # fmt: skip
    for name, module in {"webp": "webp", "avif": "avif"}.items():
        if features.check(module):
            pictures |= {f"a.{name}": (picture, {}), f"alpha.{name}": (cutout, {})}
    found = {}
    for name, (image, options) in pictures.items():
        image.save(folder / name, **options)
        found[name] = (folder / name).read_bytes()
    return found


def masks(folder: pathlib.Path) -> dict[str, bytes]:
    mask = Image.fromarray(np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint8).reshape(SHAPE) % 3 * np.uint8(127))
    found = images(folder)
    for name in ("a.pgm", "a.ppm", "a.pbm"):
        mask.convert({"a.ppm": "RGB", "a.pbm": "1"}.get(name, "L")).save(folder / name)
        found[name] = (folder / name).read_bytes()
    return found


def check_image(path: pathlib.Path) -> None:
    rgb = read_image(path, max_pixels=MAX_PIXELS)
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and 0 < rgb.size <= 3 * MAX_PIXELS


def check_mask(path: pathlib.Path) -> None:
    truth = read_truth(path, SHAPE)
    assert truth.dtype == bool and truth.shape == SHAPE


def check_labels(path: pathlib.Path) -> None:
    labels = read_labels(path, SHAPE)
    assert labels.dtype == np.uint8 and labels.shape == SHAPE


# --- checkpoints, collections, shards ---------------------------------------------------------------------------------

CONFIG = ViTConfig(width=16, depth=1, heads=2, patch=8, grid=(2, 2))


def weights(config: ViTConfig = CONFIG) -> dict[str, np.ndarray]:
    return random_vit.random_weights(config, seed=1, hidden=16, class_position=True, dtype=np.float32)


@functools.cache
def network() -> ViT:
    return ViT(CONFIG, weights(), sha256="0" * 64)


def checkpoints(folder: pathlib.Path) -> dict[str, bytes]:
    write_safetensors(folder / "a.safetensors", weights(), {"heads": "2", "mean": "[0.5, 0.5, 0.5]"})
    more = {"empty": np.zeros((0, 3), np.float32), "one": np.ones((), np.float32)}
    write_safetensors(folder / "more.safetensors", weights() | more, {"heads": "2"})
    return {name: (folder / name).read_bytes() for name in ("a.safetensors", "more.safetensors")}


def torch_files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(GOLDEN.glob("*.pth"))}


def check_checkpoint(path: pathlib.Path) -> None:
    vit = load_vit(path)
    assert vit.config.width > 0 and vit.config.depth > 0 and vit.config.width % vit.config.heads == 0


def check_torch_file(path: pathlib.Path) -> None:
    waiting = [read_torch_file(path)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, np.ndarray):
            assert value.size == 0 or np.asarray(value).ravel()[-1:].tobytes()  # within the mapped file
        elif isinstance(value, (dict, list, tuple)):
            waiting.extend(value.values() if isinstance(value, dict) else value)


def photographs(folder: pathlib.Path) -> list[pathlib.Path]:
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (*SHAPE, 3), np.uint8)).save(folder / f"{index}.png")
    return sorted(folder.glob("*.png"))


def collections(folder: pathlib.Path) -> dict[str, bytes]:
    segmenter = Segmenter(network(), 2, short_side=32, n_categories=1, cache=folder / "cache")
    segmenter.fit(photographs(folder)).save(folder / "a.safetensors")
    return {"a.safetensors": (folder / "a.safetensors").read_bytes()}


def check_collection(path: pathlib.Path) -> None:
    collection = Collection.load(path)
    assert np.isfinite(collection.centers).all() and len(collection.categories) == len(collection.centers)


@functools.cache
def store_spec() -> FeatureSpec:
    return FeatureSpec.of(network(), short_side=32)


def shards(folder: pathlib.Path) -> dict[str, bytes]:
    store = FeatureStore(folder, store_spec())
    extract_to_store(photographs(folder), network(), store)
    return {path.name: path.read_bytes() for path in store.folder.glob(f"*{SUFFIX}")}


def check_shard(path: pathlib.Path) -> None:
    """Put the file into a store under the name of its checksum, so that only its content can be wrong."""
    content = path.read_bytes()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        spec = store_spec()
        (pathlib.Path(folder) / spec.name).mkdir()
        name = hashlib.blake2b(content, digest_size=16).hexdigest() + SUFFIX
        (pathlib.Path(folder) / spec.name / name).write_bytes(content)
        store = FeatureStore(folder, spec, notice=lambda line: None)
        store.verify(vit=network())
        for photograph in store:
            entry = store.entry(photograph)
            assert entry.keys.shape == (entry.patches, CONFIG.width) and entry.attention.shape == (entry.patches,)
            assert entry.cls.shape == (CONFIG.width,) and entry.cls_state.shape == (4, CONFIG.width)
        store.close()


# --- data sets --------------------------------------------------------------------------------------------------------


XML = b"""<?xml version="1.0"?>
<annotation><folder>VOC2012</folder><size><width>32</width><height>24</height></size>
<object><name>cat</name><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>21.5</ymax></bndbox>
<part><name>head</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>
<object><name>dog</name><bndbox><xmax>32</xmax><xmin>1</xmin><ymin>1</ymin><ymax>24</ymax></bndbox></object>
</annotation>
"""


def check_boxes(path: pathlib.Path) -> None:
    for hard in (True, False):
        boxes = read_boxes(path, hard=hard)
        assert boxes.dtype == np.float64 and boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all()
        assert (boxes[:, 0] < boxes[:, 2]).all() and (boxes[:, 1] < boxes[:, 3]).all()


TABLE = b"# coarse classes\ncat, pet\ndog\tpet\nbird flying thing\n"
NUMBERED = b"cat 1\ndog 1\n3, 2\nbackground, 0\n255, ignore\n"


def check_table(path: pathlib.Path) -> None:
    lookup, classes = read_class_table(path, CLASSES)
    assert lookup.shape == (256,) and lookup.dtype == np.uint8 and len(set(lookup[:4]) - {255}) <= len(classes)
    assert all(label == 255 or label < len(classes) for label in lookup[:4])


LIST = b"2007_000032\n/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n2007_000063 1\n"


def check_list(path: pathlib.Path) -> None:
    names = read_split(path.parent, path.stem)
    assert names and not any(os.sep in name for name in names)


# --- stamps -----------------------------------------------------------------------------------------------------------


def stamps(folder: pathlib.Path) -> dict[str, bytes]:
    text = {"vitnp:parameters": "1" * 32, "vitnp:photograph": "2" * 32}
    write_png(folder / "a.png", np.zeros((2, 3), np.uint8), text)
    write_npz(folder / "a.npz", {"x": np.zeros(3)}, text)
    (folder / "a.svg").write_text("<svg/>")
    write_sidecar(folder / "a.svg", text)
    names = ("a.png", "a.npz", f"a.svg{SIDECAR_SUFFIX}")
    return {name: (folder / name).read_bytes() for name in names}


def check_stamp(path: pathlib.Path) -> None:
    if path.name.endswith(SIDECAR_SUFFIX):
        path = path.with_name(path.name.removesuffix(SIDECAR_SUFFIX))
        path.write_text("<svg/>")
    found = stamp(path)
    assert found is None or all(isinstance(text, str) for pair in found.items() for text in pair)


TEXT = (mutations.change_bytes, mutations.change_numbers, mutations.change_lines)
JSON = (*TEXT[:2], mutations.change_json, mutations.change_json)
HEADER = (mutations.change_bytes, mutations.change_header, mutations.change_header, mutations.change_shape)

TARGETS: dict[str, Target] = {
    "images": Target(images, check_image),
    "masks": Target(masks, check_mask),
    "labels": Target(masks, check_labels),
    "checkpoints": Target(checkpoints, check_checkpoint, HEADER),
    "torch files": Target(torch_files, check_torch_file),
    "collections": Target(collections, check_collection, HEADER),
    "shards": Target(shards, check_shard, HEADER),
    "coco": Target(json_targets.coco, json_targets.check_coco, JSON),
    "configurations": Target(json_targets.configs, json_targets.check_config, JSON),
    "results": Target(json_targets.results, json_targets.check_results, (*JSON, mutations.change_json_lines)),
    "voc boxes": Target(lambda folder: {"a.xml": XML}, check_boxes, TEXT),
    "class tables": Target(lambda folder: {"a.txt": TABLE, "b.txt": NUMBERED}, check_table, TEXT),
    "lists": Target(lambda folder: {"a.txt": LIST}, check_list, TEXT),
    "stamps": Target(stamps, check_stamp, (mutations.change_bytes, mutations.change_numbers)),
}

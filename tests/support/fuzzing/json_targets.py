"""Readers of JSON to fuzz: sound files, and what a sound answer looks like."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import random_vit
from PIL import Image

from vitnp import ViTConfig, load_vit
from vitnp.checkpoints.safetensors_io import write_safetensors
from vitnp.evaluate.data.coco import read_coco
from vitnp.export.decisions import Decisions
from vitnp.export.gallery_page import run_failures
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.export.rerun import RerunKeys
from vitnp.export.results_file import RESULTS, Results, ResultsWriter
from vitnp.export.rewrite import recorded_polygons
from vitnp.masks import rle

SHAPE = (24, 32)


def coco(folder: pathlib.Path) -> dict[str, bytes]:
    Image.new("RGB", SHAPE[::-1]).save(folder / "a.png")
    run_lengths = {"size": list(SHAPE), "counts": [5, 20, 700, 43]}
    packed = {"size": list(SHAPE), "counts": rle.encode(np.eye(*SHAPE, dtype=bool))}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SHAPE[0], "width": SHAPE[1]}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 20, 1, 20, 20.5, 1, 20]], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": run_lengths, "iscrowd": 1},
            {"id": 3, "image_id": 1, "category_id": 2, "segmentation": packed, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    return {"a.json": json.dumps(content).encode()}


def check_coco(path: pathlib.Path) -> None:
    found = read_coco(path, path.parent)
    for sample in found.samples:
        assert sample.image.is_relative_to(path.parent) and ".." not in sample.image.relative_to(path.parent).parts
        labels = sample.load_truth(SHAPE)
        assert labels.shape == SHAPE and set(np.unique(labels)) <= {*range(len(found.classes)), 255}


# --- files beside the weights of a checkpoint -------------------------------------------------------------------------

CONFIG = ViTConfig(width=64, depth=1, heads=1, patch=8, grid=(2, 2))
TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": [16, 16], "num_heads": 2, "patch_size": 8, "qkv_bias": True, "act_layer": "gelu"},
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 16, 16]},
}
TRANSFORMERS = {
    "model_type": "vit",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "image_size": 16,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "intermediate_size": 16,
    "qkv_bias": True,
}


def configs(folder: pathlib.Path) -> dict[str, bytes]:
    weights = random_vit.random_weights(CONFIG, seed=1, hidden=16, class_position=True, dtype=np.float32)
    write_safetensors(folder / "model.safetensors", weights, {})
    write_safetensors(folder / "a.safetensors", {name: weights[name] for name in weights if name < "c"}, {})
    write_safetensors(folder / "b.safetensors", {name: weights[name] for name in weights if name >= "c"}, {})
    shards = {name: "a.safetensors" if name < "c" else "b.safetensors" for name in weights}
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    preprocessor = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3}
    return {
        "config.json": json.dumps(TIMM).encode(),
        "transformers.json": json.dumps(TRANSFORMERS).encode(),
        "preprocessor_config.json": json.dumps(preprocessor | {"image_std": [0.5] * 3}).encode(),
        "b.safetensors.index.json": json.dumps(index).encode(),
    }


def check_config(path: pathlib.Path) -> None:
    """Load the network with this file beside it, and no other JSON of another input."""
    content = path.read_bytes()
    for other in path.parent.glob("*config.json"):
        other.unlink()
    model = path.parent / "model.safetensors"
    if path.name.endswith(".index.json"):
        model = path
    else:
        name = path.name if path.name.startswith("preprocessor") else "config.json"
        (path.parent / name).write_bytes(content)
    config = load_vit(model).config
    assert config.width == 64 and config.grid == (2, 2) and 64 % config.heads == 0 and 0 < config.eps < 1
    assert np.isfinite([*config.mean, *config.std]).all() and min(config.std) > 0


# --- results and records of runs --------------------------------------------------------------------------------------


DECIDED = [{"id": 1, "name": "lynx"}, {"id": 2, "into": 1}]
DECIDED_PHOTOGRAPHS = [
    {"id": 1, "name": "a", "decision": "wrong"},
    {"id": 2, "name": "b", "decision": "class", "class": 2},
]


def results(folder: pathlib.Path) -> dict[str, bytes]:
    regions = np.zeros(SHAPE, np.uint8)
    regions[2:9, 3:20], regions[10:20, 5:9] = 1, 2
    records = (RegionRecord(1, 0.75, 0.5, 9), RegionRecord(2, 0.25, 0.5, 4))
    Image.new("RGB", SHAPE[::-1]).save(folder / "a.png")
    with ResultsWriter(folder / RESULTS, ("cat", "dog"), has_classes=True) as writer:
        for name in ("a.png", "sub/b.png"):
            writer.add(PhotographRecord(name, 0.5, records, lambda: regions, lambda: None, folder / "a.png"))
    keys = dict.fromkeys(("settings", "photographs", "results", "labels", "collection"), "1" * 32)
    record = {
        "rerun": keys,
        "parameters": {"polygons": 1.0},
        "failures": [{"photograph": "c.png", "error": "c.png: empty"}],
    }
    decisions = {
        "vitnp": "decisions",
        "version": 1,
        "run": None,
        "classes": DECIDED,
        "photographs": DECIDED_PHOTOGRAPHS,
    }
    return {
        RESULTS: (folder / RESULTS).read_bytes(),
        "run.json": json.dumps(record).encode(),
        "decisions.json": json.dumps(decisions).encode(),
    }


def check_results(path: pathlib.Path) -> None:
    if path.name == "decisions.json":
        photographs = [
            PhotographRecord(name, 0.5, (), lambda: np.zeros(SHAPE, np.uint8), lambda: None) for name in "ab"
        ]
        names, numbers = Decisions.read(path, ("cat", "dog"), photographs).classes(("cat", "dog"))
        assert all(isinstance(name, str) for name in names) and set(numbers.values()) <= {1, 2}
        return
    if path.name == "run.json":
        keys = RerunKeys.read(path)
        assert keys is None or isinstance(keys.collection, str)
        assert recorded_polygons(path.parent) is None or recorded_polygons(path.parent) >= 0
        assert all(isinstance(text, str) for failure in run_failures(path) for text in failure.values())
        return
    found = Results.read(path.parent)
    for photograph in found.photographs():
        numbers = [photograph.confidence, *(value for region in photograph.regions for value in region[1:])]
        assert np.isfinite(numbers).all() and isinstance(photograph.name, str)
        assert all(1 <= region.label <= len(found.names) for region in photograph.regions)
        assert photograph.category is None or isinstance(photograph.category, int)
        assert photograph.region_map.max(initial=0) <= len(photograph.regions)
        photograph.load_thumbnail()

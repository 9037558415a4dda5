"""Names of feature stores and their spec files: they stay the same as long as the features do."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import random_vit

from vitnp import ViT, ViTConfig, segment_image
from vitnp.checkpoints.registry import find
from vitnp.features.record import FeatureRecord
from vitnp.features.shards import write_shard
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.options import SHORT_SIDE

# Of the built-in network's first revision, as a store of that time has it.
STORED = {
    "sha256": "665d98e41e1b62cf432288f56d44774e89ef8f7bfe7967abeb5456afdda053b0", "facet": "key", "layer": 5,
    "stride": 16, "size": 320, "precision": "float16", "arithmetic": "fp32", "pos_embed": "exact", "mean": [0.5] * 3,
    "std": [0.5] * 3, "heads": 3, "eps": 1e-6, "max_tokens": 4096, "regions": True,
    "alpha": "background", "version": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "7dde0ff23189f2e63e80262dd41739a5"),
        ({"regions": False}, "e12d8f66e1bca7acd156245223348a82"),
        (
            {"facet": "token", "layer": 3, "stride": 8, "short_side": 96, "precision": "float32"},
            "36a547f189d68d5cef07ae440dadc111",
        ),
    ],
)
def test_folders_keep_their_names(options, name):
    assert dataclasses.replace(FeatureSpec.from_stored(STORED), **options).name == name


def test_spec_file_has_the_fields_of_earlier_versions(tmp_path):
    spec = FeatureSpec.from_stored(STORED)
    FeatureStore(tmp_path, spec).make_writable()
    stored = json.loads((tmp_path / "7dde0ff23189f2e63e80262dd41739a5" / "identity.json").read_text())
    assert stored == STORED


def test_the_spec_of_a_network_is_that_of_its_configuration(builtin):
    config, spec = builtin.config, FeatureSpec.of(builtin)
    assert json.loads(json.dumps(spec.as_stored())) == {
        **STORED, "sha256": builtin.sha256, "layer": config.depth - 1, "size": find("auto").short_side or SHORT_SIDE,
        "pos_embed": config.pos_embed, "heads": config.heads,
    }  # fmt: skip


def test_stores_of_version_1_are_not_read(builtin):
    """They may have features of pictures with color profiles, whose colors were not converted."""
    stored = FeatureSpec.of(builtin).as_stored()
    del stored["alpha"]
    assert FeatureSpec.from_stored({**stored, "version": 1}).name != FeatureSpec.of(builtin).name


def test_alpha_distinguishes_features_only_where_they_differ(builtin):
    names = {alpha: FeatureSpec.of(builtin, alpha=alpha).name for alpha in ("background", "mask", "ignore")}
    assert names["background"] == names["mask"] != names["ignore"]


def test_fields_that_are_no_spec_are_refused(builtin):
    stored = FeatureSpec.of(builtin).as_stored()
    for wrong in ({**stored, "color": "red"}, {name: value for name, value in stored.items() if name != "size"}):
        with pytest.raises(TypeError):
            FeatureSpec.from_stored(wrong)


def test_every_field_changes_the_name(builtin):
    spec = FeatureSpec.of(builtin)
    changed = {
        "sha256": "0" * 64, "facet": "token", "layer": 0, "stride": 8, "short_side": 96, "precision": "float32",
        "numerics": "bf16", "pos_embed": "antialias", "mean": (0.4,) * 3, "std": (0.4,) * 3, "heads": 6, "eps": 1e-5,
        "max_tokens": 100, "regions": False, "alpha": "ignore", "version": 3, "grid": (4, 5),
        "attention_heads": True,
    }  # fmt: skip
    assert changed.keys() == {field.name for field in dataclasses.fields(spec)}
    names = {dataclasses.replace(spec, **{field: value}).name for field, value in changed.items()}
    assert len(names | {spec.name}) == len(changed) + 1


def test_shards_have_the_bytes_of_earlier_versions(tmp_path):
    """The name of a shard is the checksum of its bytes."""

    def record(photograph: str, grid: tuple[int, int], first: int) -> FeatureRecord:
        patches = grid[0] * grid[1]
        arrays = {
            "keys": np.arange(first, first + patches * 8).reshape(patches, 8).astype(np.float16),
            "attention": (np.arange(patches) / 8).astype(np.float32),
            "cls": np.arange(8).astype(np.float32),
        }
        pixels, size = (grid[0] * 16, grid[1] * 16), (grid[0] * 20, grid[1] * 20)
        return FeatureRecord(photograph, grid, pixels, size, digest=first + 5, capped=False, arrays=arrays.copy)

    path = write_shard(tmp_path, [record("b" * 32, (2, 3), 1), record("a" * 32, (3, 2), 2)])
    assert path.name == "43d2cdaa45dbbf0d04b21c5f489a30bb.safetensors"


def test_weights_are_hashed_only_for_features_that_are_stored(monkeypatch):
    config = ViTConfig(width=8, depth=1, heads=1, patch=4, grid=(2, 2))
    weights = random_vit.random_weights(config, seed=0, hidden=8, class_position=True, dtype=np.float32)
    vit = ViT(config, weights)
    assert len(FeatureSpec.of(vit).sha256) == 64
    monkeypatch.setattr("vitnp.features.spec._hash_weights", lambda vit: pytest.fail("the weights are hashed"))
    rgb = np.zeros((16, 16, 3), np.uint8)
    assert segment_image(rgb, vit, collection=None).mask.shape == (16, 16)

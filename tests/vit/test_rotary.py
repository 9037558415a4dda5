"""Rotary position embeddings: against vit/plain.py in float64, and against formulas written out here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import random_vit
from vitnp.kernels import reference
from vitnp.kernels.threads import pool

from vitnp import ViT, ViTConfig
from vitnp.errors import UsageError
from vitnp.options import FEATURES as ALL_FEATURES
from vitnp.vit import plain
from vitnp.vit.rotary import patch_centers, rotation_table

FEATURES = tuple(name for name in ALL_FEATURES if name != "cls_state")  # which is checked through region_cls
SMALL = ViTConfig(width=24, depth=3, heads=3, patch=4, grid=(4, 4), registers=2, layerscale=True, eps=1e-5, rotary=True)

# Networks, and options of their weights.
NETWORKS = {
    "small": (SMALL, {}),
    "plus": (dataclasses.replace(SMALL, registers=4, swiglu=True), {"qkv_bias": False}),
    "norm of CLS": (SMALL, {"cls_norm": True}),
    "no registers": (dataclasses.replace(SMALL, width=16, heads=1, registers=0, layerscale=False), {}),
    "heads of 64": (dataclasses.replace(SMALL, width=128, heads=2), {}),
    "heads of 80": (dataclasses.replace(SMALL, width=80, heads=1), {}),
    "heads of 128": (dataclasses.replace(SMALL, width=128, heads=1), {"qkv_bias": False}),
}


def network(name: str = "small", dtype=np.float32) -> ViT:
    config, options = NETWORKS[name]
    weights = random_vit.random_weights(config, seed=1, hidden=32, class_position=False, dtype=dtype, **options)
    return ViT(config, weights)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def features_of(vit: ViT) -> list[str]:
    return [name for name in FEATURES if vit.config.registers or name != "register"]


# ---- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, stride", [((20, 28), 4), ((28, 12), 2), ((4, 36), 4), ((8, 8), 1)])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_feature_agrees_with_the_plain_vit_in_float64(name, size, stride):
    single, exact_vit = network(name), network(name, np.float64)
    images, features = noise(2, 3, *size), features_of(single)
    for layer in (0, 2):
        found = single(images, features, layer=layer, stride=stride)
        exact = exact_vit(images.astype(np.float64), features, layer=layer, stride=stride)
        for index, image in enumerate(images.astype(np.float64)):
            expected = plain.features(exact_vit.weights, exact_vit.config, image, layer, stride)
            for feature in features:
                label = f"{feature} of block {layer}"
                np.testing.assert_allclose(
                    exact[feature][index], expected[feature], rtol=1e-9, atol=1e-9, err_msg=label
                )
                np.testing.assert_allclose(found[feature][index], expected[feature], rtol=0, atol=2e-5, err_msg=label)


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_alone_is_that_of_all_together(feature):
    # For a single feature most of the last block is skipped, so other code runs: keys must be rotated once there too.
    vit, images = network(), noise(2, 3, 20, 28)
    together = vit(images, FEATURES)
    np.testing.assert_array_equal(vit(images, feature)[feature], together[feature])


@pytest.mark.parametrize("name", ["small", "heads of 80", "norm of CLS"])
def test_the_same_bits_for_any_number_of_threads_and_any_batch(name):
    vit, images = network(name), noise(3, 3, 64, 44)  # 176 patches: more than one thread or chunk takes at a time
    with pool.thread_limit(1):
        alone = vit(images, FEATURES, stride=2)
        first = vit(images[:1], FEATURES, stride=2)
    for feature in FEATURES:
        np.testing.assert_array_equal(alone[feature][:1], first[feature], err_msg=feature)
    with pool.thread_limit(4):
        for batch in (1, 3):
            found = vit(images[:batch], FEATURES, stride=2)
            for feature in FEATURES:
                np.testing.assert_array_equal(found[feature], alone[feature][:batch], err_msg=feature)


def test_images_of_different_shapes_do_not_share_positions():
    vit, wide, tall = network(), noise(1, 3, 8, 16), noise(1, 3, 16, 8)  # of as many patches
    expected = {"wide": network()(wide, "token")["token"], "tall": network()(tall, "token")["token"]}
    for _ in range(2):
        np.testing.assert_array_equal(vit(wide, "token")["token"], expected["wide"])
        np.testing.assert_array_equal(vit(tall, "token")["token"], expected["tall"])
    assert not np.array_equal(vit(wide, "token", stride=2)["token"][:, :8], expected["wide"])


def test_keys_carry_no_place_before_the_rotation_and_one_after_it():
    vit = network()
    found = vit(np.ones((1, 3, 16, 24), np.float32), ("key", "key_rotated", "query"), layer=0)
    key, rotated = found["key"][0], found["key_rotated"][0]
    np.testing.assert_array_equal(key, np.broadcast_to(key[0], key.shape))  # patches of one color are the same
    np.testing.assert_array_equal(found["query"][0], np.broadcast_to(found["query"][0, 0], key.shape))
    distances = np.abs(rotated[:, None] - rotated).max(axis=-1)
    assert distances[~np.eye(len(rotated), dtype=bool)].min() > 1e-2
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(key, axis=1), rtol=1e-5)


def test_a_region_that_is_the_whole_image_has_its_cls_token():
    # Without registers, which regions leave out.
    vit, images = network("no registers"), noise(1, 3, 16, 28)
    for stride in (None, 2):
        found = vit(images, ("key", "value", "cls", "cls_state"), stride=stride)
        arrays = [found[name][0] for name in ("cls_state", "key", "value")]
        regions = np.ones((1, len(arrays[1])), bool)
        found_cls = vit.region_cls(*arrays, regions, size=(16, 28))
        np.testing.assert_allclose(found_cls, found["cls"], atol=1e-5)
        transposed = vit.region_cls(*arrays, regions, size=(28, 16))
        assert np.abs(transposed - found["cls"]).max() > 1e-3  # patches have places


def test_a_region_is_the_last_block_with_attention_restricted_to_it():
    vit, images = network("norm of CLS", np.float64), noise(1, 3, 12, 20).astype(np.float64)
    config, regions = vit.config, np.random.default_rng(4).random((3, 15)) < 0.4
    found = vit(images, ("key_rotated", "key", "value", "cls_state"))
    last = plain.nest(vit.weights)["blocks"]["2"]
    cls, query, cls_key, cls_value = found["cls_state"][0]
    for index, region in enumerate(regions):
        keys = np.vstack([cls_key, found["key_rotated"][0][region]])
        values = np.vstack([cls_value, found["value"][0][region]])
        attention = plain.attention_weights(query[None], keys, config.heads, None)
        x = cls + last["ls1"]["gamma"] * plain.linear(
            plain.merge_heads(attention @ plain.split_heads(values, config.heads)), **last["attn"]["proj"]
        )
        x = x + last["ls2"]["gamma"] * plain.mlp(plain.norm(x, **last["norm2"], eps=config.eps), last["mlp"])
        expected = plain.norm(x, **plain.nest(vit.weights)["cls_norm"], eps=config.eps)
        result = vit.region_cls(found["cls_state"][0], found["key"][0], found["value"][0], regions, size=(12, 20))
        np.testing.assert_allclose(result[index], expected[0], rtol=1e-9, atol=1e-9)


# ---- the rotation --------------------------------------------------------------------------------------------------


def test_centers_of_patches_that_do_not_overlap_are_those_of_the_official_code():
    for count in (1, 2, 7, 14):
        np.testing.assert_allclose(patch_centers(count, 16, 16), 2 * (np.arange(count) + 0.5) / count - 1, atol=1e-15)


def test_centers_of_overlapping_patches_lie_in_the_image():
    # Patches of 16 pixels every 8 pixels of 32: their centers are at 8, 16 and 24.
    np.testing.assert_allclose(patch_centers(3, 16, 8), [-0.5, 0, 0.5])
    np.testing.assert_allclose(patch_centers(5, 16, 4), np.array([8, 12, 16, 20, 24]) / 16 - 1)


def test_the_table_is_the_angles_written_out():
    config = dataclasses.replace(SMALL, width=16, heads=1, registers=1)
    periods = np.array([1.0, 2.0, 4.0, 8.0])
    table = rotation_table(periods, config, (2, 3), stride=4, dtype=np.float64)
    assert table.shape == (2 + 6, 16)
    np.testing.assert_array_equal(table[:2], [[1] * 8 + [0] * 8] * 2)  # CLS and the register
    for row in range(2):
        for column in range(3):
            y, x = (row + 0.5) - 1, (column + 0.5) / 3 * 2 - 1
            angles = 2 * np.pi * np.concatenate([y / periods, x / periods])
            expected = np.concatenate([np.cos(angles), np.sin(angles)])
            np.testing.assert_allclose(table[2 + 3 * row + column], expected, atol=1e-12)
    assert rotation_table(periods.astype(np.float32), config, (2, 3), stride=4).dtype == np.float32


def test_rotation_is_a_product_of_complex_numbers():
    rng = np.random.default_rng(5)
    x, angles = rng.standard_normal((2, 7, 24)), rng.uniform(-9, 9, (7, 4))
    found = reference.rotate(x, np.concatenate([np.cos(angles), np.sin(angles)], axis=1), heads=3)
    for head in range(3):
        part, turned = (a[..., 8 * head : 8 * head + 8] for a in (x, found))
        expected = (part[..., :4] + 1j * part[..., 4:]) * np.exp(1j * angles)
        np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], axis=-1), atol=1e-12)


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_rotated_keys_of_a_network_without_rotation_are_refused():
    config = dataclasses.replace(SMALL, rotary=False)
    vit = ViT(config, random_vit.random_weights(config, seed=1, hidden=32, class_position=True, dtype=np.float32))
    with pytest.raises(UsageError, match="'key_rotated' .* this network lacks: use key"):
        vit(noise(1, 3, 8, 8), "key_rotated")
    assert "key_rotated" in SMALL.facets and "key_rotated" not in config.facets


@pytest.mark.parametrize("size", [None, (12, 16), (0, 0), (1, 1)])
def test_regions_of_patches_without_places_are_refused(size):
    vit = network()
    found = vit(noise(1, 3, 12, 20), ("key", "value", "cls_state"))
    arrays = [found[name][0] for name in ("cls_state", "key", "value")]
    with pytest.raises(UsageError, match="size must be the height and width in pixels of the image of these 15"):
        vit.region_cls(*arrays, np.ones((1, 15), bool), size=size)


def test_periods_that_do_not_fit_the_heads_are_refused():
    vit = network()
    vit = ViT(vit.config, vit.weights | {"rope_embed.periods": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match="heads of 8 numbers need 2 periods, got 3"):
        vit(noise(1, 3, 8, 8))

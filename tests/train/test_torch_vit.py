"""The network in torch equals the network in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toy import FORMS, network
from vitnp.weights.train import torch_vit

from vitnp.vit.model import ViT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(224, 224), (192, 320)])
def test_features_equal_those_of_vitnp(form, size):
    vit = network(**FORMS[form])
    images = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    expected = vit(images, ("key", "token", "cls"))
    with torch.no_grad():
        weights = torch_vit.to_torch(vit)
        states, key = torch_vit.forward(weights, vit.config, torch.from_numpy(images), group_size=2)
        final = torch_vit.layer_norm(weights, vit.config, states[-1]).numpy()
    first = 1 + vit.config.registers
    assert len(states) == 3
    for got, name in ((key.numpy()[:, first:], "key"), (final[:, first:], "token"), (final[:, 0], "cls")):
        assert np.abs(got - expected[name]).max() <= 1e-5 * max(1, np.abs(expected[name]).max())


@pytest.mark.parametrize("form", FORMS)
def test_region_cls_equals_that_of_vitnp(form):
    vit = network(**FORMS[form])
    images = np.random.default_rng(0).standard_normal((2, 3, 192, 320)).astype(np.float32)
    found = vit(images, ("key", "value", "cls_state"))
    regions = np.random.default_rng(1).random((2, found["key"].shape[1])) < 0.3
    regions[1] = False  # CLS then attends to itself alone
    expected = [
        vit.region_cls(found["cls_state"][i], found["key"][i], found["value"][i], regions[i : i + 1], size=(192, 320))[
            0
        ]
        for i in range(2)
    ]
    with torch.no_grad():
        weights = torch_vit.to_torch(vit)
        states, _ = torch_vit.forward(weights, vit.config, torch.from_numpy(images))
        rotation = torch_vit.token_rotation(weights, vit.config, torch.from_numpy(images))
        cls = torch_vit.region_cls(weights, vit.config, states[-2], torch.from_numpy(regions), rotation).numpy()
    assert np.abs(cls - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_weights_round_trip(teacher):
    back = torch_vit.to_numpy(torch_vit.to_torch(teacher))
    assert back.keys() == teacher.weights.keys()
    assert all(np.array_equal(back[name], teacher.weights[name]) for name in back)


@pytest.mark.parametrize("form", FORMS)
def test_vitnp_runs_a_student(form):
    config = torch_vit.student_config(network(**FORMS[form]).config, 2)
    student = ViT(config, torch_vit.to_numpy(torch_vit.initial_weights(config, seed=0)))
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 256)).astype(np.float32)
    with torch.no_grad():
        _, key = torch_vit.forward(torch_vit.to_torch(student), config, torch.from_numpy(images))
    assert np.abs(student(images)["key"] - key.numpy()[:, 1 + config.registers :]).max() < 1e-5


def test_initial_weights_depend_on_the_seed():
    config = torch_vit.student_config(network().config, 2)
    one, again, other = (torch_vit.initial_weights(config, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["cls_token"], other["cls_token"])


def test_block_inputs_replace_the_output_of_the_block_before():
    vit = network()
    weights = torch_vit.to_torch(vit)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states, key = torch_vit.forward(weights, vit.config, images)
        forced, forced_key = torch_vit.forward(weights, vit.config, images, block_inputs=states)
        assert torch.equal(key, forced_key) and all(map(torch.equal, states, forced))
        # A change of block 1 does not affect block 2.
        changed = {**weights, "blocks.1.mlp.fc2.bias": weights["blocks.1.mlp.fc2.bias"] + 1}
        forced, _ = torch_vit.forward(changed, vit.config, images, block_inputs=states)
    assert not torch.allclose(forced[2], states[2])
    assert torch.equal(forced[3], states[3])

"""The network in torch computes what vitnp computes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toy import FORMS, network
from vitnp.weights.train import torch_vit

from vitnp.vit.model import ViT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(224, 224), (192, 320)])
def test_parity(form, size):
    vit = network(**FORMS[form])
    images = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    want = vit(images, ("key", "token", "cls"))
    with torch.no_grad():
        weights = torch_vit.to_torch(vit)
        states, key = torch_vit.stream(weights, vit.config, torch.from_numpy(images), every=2)
        final = torch_vit.norm(weights, vit.config, states[-1]).numpy()
    first = 1 + vit.config.registers
    assert len(states) == 3
    for got, name in ((key.numpy()[:, first:], "key"), (final[:, first:], "token"), (final[:, 0], "cls")):
        assert np.abs(got - want[name]).max() <= 1e-5 * max(1, np.abs(want[name]).max())


def test_weights_go_to_and_fro(teacher):
    back = torch_vit.to_numpy(torch_vit.to_torch(teacher))
    assert back.keys() == teacher.weights.keys()
    assert all(np.array_equal(back[name], teacher.weights[name]) for name in back)


@pytest.mark.parametrize("form", FORMS)
def test_a_student_is_a_network_that_vitnp_runs(form):
    config = torch_vit.student_config(network(**FORMS[form]).config, 2)
    student = ViT(config, torch_vit.to_numpy(torch_vit.initial_weights(config, seed=0)))
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 256)).astype(np.float32)
    with torch.no_grad():
        _, key = torch_vit.stream(torch_vit.to_torch(student), config, torch.from_numpy(images))
    assert np.abs(student(images)["key"] - key.numpy()[:, 1 + config.registers :]).max() < 1e-5


def test_initial_weights_depend_on_the_seed():
    config = torch_vit.student_config(network().config, 2)
    one, again, other = (torch_vit.initial_weights(config, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["cls_token"], other["cls_token"])


def test_blocks_that_are_fed_do_not_hear_of_each_other():
    vit = network()
    weights = torch_vit.to_torch(vit)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states, key = torch_vit.stream(weights, vit.config, images)
        fed, key_fed = torch_vit.stream(weights, vit.config, images, feed=states)
        assert torch.equal(key, key_fed) and all(map(torch.equal, states, fed))
        # With block 1 broken, block 2 still makes the same of what it is fed.
        broken = {**weights, "blocks.1.mlp.fc2.bias": weights["blocks.1.mlp.fc2.bias"] + 1}
        fed, _ = torch_vit.stream(broken, vit.config, images, feed=states)
    assert not torch.allclose(fed[2], states[2])
    assert torch.equal(fed[3], states[3])

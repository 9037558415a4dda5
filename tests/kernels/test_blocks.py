"""All blocks in one kernel call: the bits of the same kernels called one by one, whatever thread takes which rows."""

from __future__ import annotations

import _thread
import functools
import threading

import numpy as np
import pytest
import random_vit
from vitnp.kernels.threads import pool, team

from vitnp import ViT, ViTConfig, kernels
from vitnp.vit.forward import ForwardPass

k = kernels.for_device("cpu")
pytestmark = pytest.mark.skipif(not k.SHARES_TOKENS, reason="there are no compiled kernels here")

PRECISIONS = k.precisions()
REQUESTS = [
    ("key", "query", "value", "token", "cls", "register", "attention", "cls_state"),
    ("key",),
    ("value",),
    ("cls", "query"),
    ("register",),
    ("cls_state", "attention"),
]


class OneByOne(ForwardPass):
    """A forward pass that calls one kernel after the other, for whole images."""

    def attend(self, query, key, value):
        n_images, n_tokens, width = key.shape
        cache = k.KVCache(
            n_images, n_tokens, width, self.config.heads, slot=9, precision=self.weights.precision,
            rotation=self.rotation,
        )  # fmt: skip
        cache.write(slice(0, n_images), 0, key, value)
        return cache.attend(query, slice(0, n_images))


def one_by_one(vit: ViT, images: np.ndarray, features: tuple[str, ...], layer: int = -1) -> dict[str, np.ndarray]:
    state = OneByOne(vit._packed_weights(), images, vit.config.patch, layer % vit.config.depth, features)
    state.run(team.Worker(0, 1, None))
    return state.result()


@functools.cache
def network(precision: str = "fp32", *, qkv_bias: bool = True, cls_norm: bool = False, **changes) -> ViT:
    config = ViTConfig(**({"width": 96, "depth": 3, "heads": 3, "patch": 8, "grid": (4, 4)} | changes))
    weights = random_vit.random_weights(
        config, seed=1, hidden=200, class_position=True, dtype=np.float32, qkv_bias=qkv_bias, cls_norm=cls_norm
    )
    return ViT(config, weights, precision=precision)


def random_images(batch: int = 3, height: int = 64, width: int = 104) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((batch, 3, height, width), np.float32)


def check(vit: ViT, images: np.ndarray, features: tuple[str, ...], **options) -> None:
    expected = one_by_one(vit, images, features, **options)
    assert all(np.isfinite(array).all() for array in expected.values())
    for n_threads in (1, 2, 3, 4, 7):
        with pool.thread_limit(n_threads):
            found = vit(images, features, **options)
            alone = vit(images[1:2], features, **options)
        for name in features:
            np.testing.assert_array_equal(found[name], expected[name])
            np.testing.assert_array_equal(alone[name], expected[name][1:2])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"registers": 4, "layerscale": True},
        {"swiglu": True, "registers": 1},
        {"width": 90, "heads": 5, "registers": 2, "qkv_bias": False},
        {"rotary": True, "registers": 4, "cls_norm": True},
    ],
    ids=["layerscale", "swiglu", "odd", "rotary"],
)
def test_every_kind_of_network_has_the_bits_of_its_kernels(precision, changes):
    check(network(precision, **changes), random_images(), REQUESTS[0])


@pytest.mark.parametrize("features", REQUESTS[1:], ids="-".join)
def test_each_request_has_the_bits_of_its_kernels(features):
    vit = network("int8" if "int8" in PRECISIONS else "fp32", registers=4, layerscale=True)
    check(vit, random_images(), features)
    check(vit, random_images(), features, layer=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_buffer_of_keys_and_values_and_one_step_for_each_call_change_no_bit(precision, monkeypatch):
    from vitnp.kernels.cpu import transformer

    vit = network(precision, registers=4, layerscale=True)
    monkeypatch.setattr(transformer, "MAX_WORK", 0)
    check(vit, random_images(), REQUESTS[0])
    monkeypatch.setattr(transformer, "SINGLE_KV_BUFFER_TOKENS", 0)
    check(vit, random_images(), REQUESTS[0])
    check(vit, random_images(), ("key",))


def test_rows_of_one_claim_may_be_of_several_images():
    vit = network(registers=1)
    images = random_images(40, 16, 24)  # 8 tokens each
    whole = vit(images, ("token", "query"))
    for number in (0, 7, 39):
        alone = vit(images[number : number + 1], ("token", "query"))
        for name, array in alone.items():
            np.testing.assert_array_equal(array[0], whole[name][number])


def test_passes_in_several_threads_at_the_same_time_do_not_disturb_each_other():
    vit = network(registers=4)
    images = random_images()
    expected = vit(images, "token")["token"]
    with pool.thread_limit(2):
        for found in pool.map_ordered(lambda _: vit(images, "token")["token"], range(12), threads=3):
            np.testing.assert_array_equal(found, expected)


@pytest.fixture
def one_step_calls(monkeypatch):
    """Return a function that replaces the kernel by one that acts before a call, with one step for each call."""
    from vitnp.kernels.cpu import transformer

    kernel = transformer.run_blocks
    monkeypatch.setattr(transformer, "MAX_WORK", 0)

    def replace(act):
        def run_blocks(*arguments):
            act(arguments[1])
            return kernel(*arguments)

        monkeypatch.setattr(transformer, "run_blocks", run_blocks)

    return replace


@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("culprit", ["main", "other"])
def test_a_thread_that_fails_in_the_middle_ends_the_others(culprit, n_threads, one_step_calls):
    vit, images = network(registers=4), random_images()
    expected = vit(images, "token")["token"]
    armed = threading.Event()
    armed.set()

    def fail(step):
        is_main = threading.current_thread() is threading.main_thread()
        if armed.is_set() and step == 2 and is_main == (culprit == "main"):
            raise ZeroDivisionError("here")

    one_step_calls(fail)
    with pool.thread_limit(n_threads):
        with pytest.raises(ZeroDivisionError, match="here"):
            vit(images, "token")
        armed.clear()
        np.testing.assert_array_equal(vit(images, "token")["token"], expected)


def test_ctrl_c_in_the_middle_ends_all_threads(one_step_calls):
    vit, images = network(registers=4), random_images()
    expected = vit(images, "token")["token"]
    armed = threading.Event()
    armed.set()

    def interrupt(step):
        if armed.is_set() and step == 1 and threading.current_thread() is threading.main_thread():
            armed.clear()
            _thread.interrupt_main()

    one_step_calls(interrupt)
    with pool.thread_limit(2):
        with pytest.raises(KeyboardInterrupt):
            vit(images, "token")
        np.testing.assert_array_equal(vit(images, "token")["token"], expected)


def test_a_thread_that_fails_before_the_blocks_ends_the_others(monkeypatch):
    vit, images = network(), random_images()
    prepare = ForwardPass.prepare_tokens

    def prepare_tokens(self, chunk_images, rows):
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError("here")
        prepare(self, chunk_images, rows)

    monkeypatch.setattr(ForwardPass, "prepare_tokens", prepare_tokens)
    with pool.thread_limit(2), pytest.raises(ZeroDivisionError, match="here"):
        vit(images, "token")


def test_no_images_give_no_features():
    found = network(registers=4)(random_images(0), REQUESTS[0])
    assert all(len(array) == 0 for array in found.values())


def test_arrays_that_are_not_contiguous_are_refused():
    from vitnp.kernels.cpu.block_tables import address

    with pytest.raises(ValueError, match="contiguous"):
        address(np.zeros((4, 4))[:, ::2])

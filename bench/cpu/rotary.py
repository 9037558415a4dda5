"""Keys of a vision transformer with rotary position embeddings against those of the same network without them.

The two differ by less than other programs disturb a sample. So many short samples are taken, of processor time: run it
on one thread.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from vitnp.kernels import for_device

from bench.cpu import vit_peers
from bench.cpu.comparison import Bar, Call, WrongAnswer, compare
from bench.cpu.interleave import Clock
from vitnp.vit import plain
from vitnp.vit.model import ViT

if TYPE_CHECKING:
    from bench.cpu.sections import RunSettings

WITHOUT, WITH = "keys, positions added", "keys, positions rotary"
CASES = [vit_peers.Case("S", 16, 224, 1), vit_peers.Case("S", 16, 480, 1), vit_peers.Case("B", 16, 224, 1)]
# A rotation takes at most 1 % of the time.
LEAST = 1 / 1.01
ROUNDS, MIN_SECONDS = 99, 0.04
# Largest difference from the plain ViT in float32, relative to the largest key; in bfloat16 the mean one to the mean.
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 2e-2


def rotary(settings: RunSettings) -> Iterator[dict[str, Any]]:
    """Time the keys of the last block, in each precision that the processor has."""
    for case in CASES[:1] if settings.quick else CASES:
        if settings.includes(case.batch * case.tokens):
            for precision in for_device().precisions():
                yield _case(case, precision, settings)


def _case(case: vit_peers.Case, precision: str, settings: RunSettings) -> dict[str, Any]:
    config, images = case.config, case.images()
    quarter = config.width // config.heads // 4
    periods = 100 ** (np.arange(quarter, dtype=np.float32) / quarter)
    weights = vit_peers.random_weights(config) | {"rope_embed.periods": periods}
    configs = {WITHOUT: config, WITH: dataclasses.replace(config, rotary=True)}

    def build(name: str) -> Call:
        vit = ViT(configs[name], weights, precision=precision)
        return lambda: vit(images)["key"]

    def check(name: str, keys: np.ndarray) -> None:
        expected = plain.features(weights, configs[name], images[0], config.depth - 1, config.patch)["key"]
        reduce, tolerance = (np.max, FLOAT32_TOLERANCE) if precision == "fp32" else (np.mean, BFLOAT16_TOLERANCE)
        error = reduce(np.abs(keys[0] - expected)) / reduce(np.abs(expected))
        if not error <= tolerance:
            raise WrongAnswer(f"{name} must agree with the plain ViT within {tolerance:g}, it is {error:.1g} away")

    builders = {name: functools.partial(build, name) for name in configs}
    facts = {"side": case.side, "tokens": case.tokens, "precision": precision}
    label = f"{case.label}, {precision}"
    plan = dataclasses.replace(settings.plan, rounds=ROUNDS, min_seconds=MIN_SECONDS)
    bars, clock = [Bar(WITH, WITHOUT, LEAST)], Clock(now=time.process_time)
    return compare(label, facts, builders, bars, plan, check=check, clock=clock)

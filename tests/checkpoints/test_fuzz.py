"""Thousands of damaged checkpoints: each is loaded or refused in one sentence."""

from __future__ import annotations

import fuzz_checkpoints
import pytest


@pytest.fixture
def folder(tmp_path):
    fuzz_checkpoints.write_shard(tmp_path)
    return tmp_path


def try_numbers(folder, numbers):
    """Return how many of the damaged checkpoints could be loaded all the same."""
    loaded = 0
    for number in numbers:
        name, content = fuzz_checkpoints.mutated_checkpoint(number)
        (folder / name).write_bytes(content)
        try:
            loaded += fuzz_checkpoints.try_checkpoint(folder / name)
        except Exception as error:
            pytest.fail(f"checkpoint {number}, {name}: {type(error).__name__}: {error}")
    return loaded


def test_damaged_checkpoints_are_loaded_or_refused(folder):
    assert 0 < try_numbers(folder, range(300)) < 150  # most damage is noticed, and some is harmless


@pytest.mark.slow(reason="many inputs")
def test_many_damaged_checkpoints_are_loaded_or_refused(folder):
    assert 0 < try_numbers(folder, range(300, 3000)) < 1350


def test_a_number_gives_the_same_checkpoint_every_time():
    assert fuzz_checkpoints.mutated_checkpoint(7) == fuzz_checkpoints.mutated_checkpoint(7)

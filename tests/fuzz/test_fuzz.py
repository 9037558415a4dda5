"""Fuzzing: every reader gives a sound value or one clear sentence, whatever a file contains.

``pytest -m fuzz`` takes about 30 seconds, or VITNP_FUZZ_SECONDS. The inputs depend on VITNP_FUZZ_SEED (0) and their
number alone, so that a finding can be repeated: VITNP_FUZZ_FIRST is the number of the first input. A finding is an
exception other than VitnpError, an unsound value, a message of several lines, more than ten seconds, or more than a
gigabyte of memory.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from fuzzing.targets import TARGETS, Target

from vitnp.errors import VitnpError

pytestmark = pytest.mark.fuzz

SECONDS = float(os.environ.get("VITNP_FUZZ_SECONDS", "30"))
SEED = int(os.environ.get("VITNP_FUZZ_SEED", "0"))
FIRST = int(os.environ.get("VITNP_FUZZ_FIRST", "0"))

MAX_SECONDS_PER_INPUT = 10
MAX_BYTES = 1 << 30


class TooSlow(BaseException):
    """An input took too long; no Exception, so that no reader turns it into an error of its own."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raise TooSlow in the block after some seconds, on systems with alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*arguments: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS_PER_INPUT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes() -> int:
    """Return the largest memory that this process has had so far; 0 where that is unknown."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def change(target: Target, seeds: dict[str, bytes], name: str, index: int) -> tuple[str, bytes]:
    """Return the file name and the content of an input."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode()), index])
    file_name, content = list(seeds.items())[int(rng.integers(len(seeds)))]
    for mutation in (
        target.mutations[int(rng.integers(len(target.mutations)))] for _ in range(int(rng.integers(1, 3)))
    ):
        with contextlib.suppress(Exception):  # the second one may not find what it changes
            content = mutation(content, rng)
    return file_name, content


def judge(target: Target, path: pathlib.Path) -> tuple[bool, str]:
    """Read a file; return whether it was read, and what is wrong with that, if anything."""
    before = peak_bytes()
    try:
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's
            target.read(path)
    except VitnpError as error:
        wrong = "" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
        read = False
    except TooSlow:
        read, wrong = False, f"takes more than {MAX_SECONDS_PER_INPUT} seconds"
    except BaseException:
        read, wrong = False, traceback.format_exc(limit=-6)
    else:
        read, wrong = True, ""
    if not wrong and peak_bytes() - before > MAX_BYTES:
        wrong = f"takes {(peak_bytes() - before) >> 20} MB"
    return read, wrong


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name, tmp_path, record_property):
    target = TARGETS[name]
    folder = tmp_path / "files"
    folder.mkdir()
    seeds = target.seeds(folder)
    sound = 0
    for file_name, content in seeds.items():
        (folder / file_name).write_bytes(content)
        read, wrong = judge(target, folder / file_name)
        assert not wrong, (file_name, wrong)
        sound += read
    assert sound > 0
    findings: list[str] = []
    count = n_read = 0
    until = time.monotonic() + SECONDS / len(TARGETS)
    while time.monotonic() < until:
        file_name, content = change(target, seeds, name, FIRST + count)
        path = folder / file_name
        path.unlink(missing_ok=True)  # it may still be mapped
        path.write_bytes(content)
        read, wrong = judge(target, path)
        if wrong:
            kept = tmp_path / f"{FIRST + count}-{file_name}"
            kept.write_bytes(content)
            findings.append(f"input {FIRST + count}, kept as {kept}: {wrong}")
            if len(findings) == 5:
                break
        count += 1
        n_read += read
    record_property("fuzz", f"{name}: {count:,} inputs, {n_read:,} read, {len(findings)} findings")
    assert not findings, "\n".join(findings)

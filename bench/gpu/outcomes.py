"""A plugin of pytest: a line of JSON for each test as it ends, so that a run that is stopped has still told its first half.

``python -m pytest -p bench.gpu.outcomes``, with the file's name in VITNP_BENCH_OUTCOMES.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

FILE = "VITNP_BENCH_OUTCOMES"
MOST_TEXT = 1500


def pytest_configure(config: pytest.Config) -> None:
    """Listen, in the process that hears of all tests: a worker of xdist isn't it."""
    if FILE in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(os.environ[FILE])), "vitnp-outcomes")


class Outcomes:
    """Writes down how tests end.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path):
        self._path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Take note of a file that can't be imported."""
        if report.failed:
            self._write(report, "failed", 0.0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a test's outcome; setup and teardown count when they aren't as they should be."""
        if report.when == "call" or not report.passed:
            self._write(report, report.outcome, report.duration)

    def _write(self, report: pytest.CollectReport | pytest.TestReport, outcome: str, seconds: float) -> None:
        facts = {"test": report.nodeid, "outcome": outcome, "seconds": round(seconds, 3)}
        if outcome == "failed":
            facts["text"] = gist(report.longreprtext)
        elif outcome == "skipped" and isinstance(report.longrepr, tuple):
            facts["text"] = str(report.longrepr[-1]).removeprefix("Skipped: ")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def gist(text: str) -> str:
    """The lines of a failure that say what was wrong, in one line: those that pytest begins with an E.

    Examples
    --------
    >>> gist("def test():\\n>   assert 1 == 2\\nE   assert 1 == 2\\n\\nt.py:3: AssertionError")
    'assert 1 == 2'
    """
    lines = [line[1:].split() for line in text.splitlines() if line.startswith("E ")]
    return " ".join(" ".join(words) for words in lines or [text.split()])[:MOST_TEXT]

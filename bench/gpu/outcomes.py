"""A pytest plugin that writes a line of JSON as each test ends, so that the results of a stopped run are kept.

Use it with ``python -m pytest -p bench.gpu.outcomes``; the environment variable VITNP_BENCH_OUTCOMES names the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# Environment variable with the name of the file.
FILE = "VITNP_BENCH_OUTCOMES"
# Characters that are kept of a failure report.
MOST_TEXT = 1500


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin in the main process, not in workers of xdist."""
    if FILE in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(os.environ[FILE])), "vitnp-outcomes")


class Outcomes:
    """Write the outcomes of tests to a file.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path):
        self._path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a test file that cannot be imported."""
        if report.failed:
            self._write(report, "failed", 0.0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome of a test, and of setup and teardown unless they passed."""
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
    r"""Join the lines of a failure report that say what was wrong, those that pytest marks with an E.

    Examples
    --------
    >>> gist("def test():\n>   assert 1 == 2\nE   assert 1 == 2\n\nt.py:3: AssertionError")
    'assert 1 == 2'
    """
    lines = [line[1:].split() for line in text.splitlines() if line.startswith("E ")]
    return " ".join(" ".join(words) for words in lines or [text.split()])[:MOST_TEXT]

"""Records of a step, one line of JSON each, written at once: a step that is stopped has reported what it has done."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from bench.gpu.measure import Timing


class Report:
    """The records of one step.

    Parameters
    ----------
    path : path
        File to which each record is appended.
    seconds : float
        Time limit of the step.
    step : str
        Name of the step.
    """

    def __init__(self, path: str | Path, seconds: float, step: str):
        self._path, self._step = Path(path), step
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Return the seconds that the step has left."""
        return self._until - time.monotonic()

    def check(self, name: str, passed: bool, detail: str = "", **facts: object) -> bool:
        """Record a check and whether it passed, with numbers that targets need; return whether it passed."""
        self._write("check", name=name, passed=bool(passed), detail=detail, **facts)
        return bool(passed)

    def near(
        self, name: str, found: float, most: float, where: Callable[[], str] | None = None, **facts: object
    ) -> bool:
        """Record a check that a difference is at most `most`; `where` describes the differences, if it fails."""
        right = found <= most
        places = f"; {where()}" if where and not right else ""
        return self.check(name, right, f"{found:.3g}, at most {most:g}{places}", **facts)

    def time(self, case: dict[str, object], contender: str, timing: Timing, **facts: object) -> None:
        """Record a contender's time for a case, with derived numbers such as the rate."""
        self._write("time", case=case, contender=contender, seconds=timing.seconds, **timing.facts, **facts)

    def missing(self, case: dict[str, object], contender: str, why: str) -> None:
        """Record why a contender was not measured."""
        self._write("missing", case=case, contender=contender, why=why)

    def kernel(self, name: str, **facts: object) -> None:
        """Record the resources of a kernel: registers, shared memory, launches, seconds."""
        self._write("kernel", name=name, **facts)

    def skip(self, name: str, why: str) -> None:
        """Record something that was not done, and why."""
        self._write("skipped", name=name, why=why)

    def has_time(self, name: str, seconds: float) -> bool:
        """Return whether enough time is left; record a skip if not."""
        if self.left >= seconds:
            return True
        self.skip(name, "out of time")
        return False

    def _write(self, kind: str, **facts: object) -> None:
        line = json.dumps({"step": self._step, "kind": kind, **facts}, default=_plain)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read(path: str | Path) -> list[dict[str, object]]:
    """Read the records of a step, up to an incomplete last line."""
    path = Path(path)
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # stopped in the middle of a line
            break
    return found


def _plain(value: object) -> object:
    """Convert numbers of NumPy and CuPy to Python's; NaN becomes None."""
    number = value.item() if hasattr(value, "item") else str(value)
    return None if isinstance(number, float) and math.isnan(number) else number

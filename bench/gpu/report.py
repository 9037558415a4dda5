"""What a step has found, a line of JSON each as it comes: a step that is stopped half-way has still reported the first half."""

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
        Grows by a line for each record.
    seconds : float
        What the step has.
    step : str
        Its name.
    """

    def __init__(self, path: str | Path, seconds: float, step: str):
        self._path, self._step = Path(path), step
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that the step still has."""
        return self._until - time.monotonic()

    def check(self, name: str, passed: bool, detail: str = "") -> bool:
        """Something that has to be right, and whether it is."""
        self._write("check", name=name, passed=bool(passed), detail=detail)
        return bool(passed)

    def near(self, name: str, found: float, most: float, where: Callable[[], str] | None = None) -> bool:
        """A difference that has to be small; NaN isn't. `where` says which numbers differ, and is asked only if some do."""
        right = found <= most
        places = f"; {where()}" if where and not right else ""
        return self.check(name, right, f"{found:.3g}, at most {most:g}{places}")

    def time(self, case: dict[str, object], contender: str, timing: Timing, **facts: object) -> None:
        """A contender's time for a case; figures of what it amounts to go with it."""
        self._write("time", case=case, contender=contender, seconds=timing.seconds, **timing.facts, **facts)

    def missing(self, case: dict[str, object], contender: str, why: str) -> None:
        """A contender that took no part."""
        self._write("missing", case=case, contender=contender, why=why)

    def kernel(self, name: str, **facts: object) -> None:
        """What one of the kernels takes: registers, shared memory, launches, seconds."""
        self._write("kernel", name=name, **facts)

    def skip(self, name: str, why: str) -> None:
        """Something that wasn't done, and why."""
        self._write("skipped", name=name, why=why)

    def has_time(self, name: str, seconds: float) -> bool:
        """Whether there is so much time left; if not, that's on record."""
        if self.left >= seconds:
            return True
        self.skip(name, "out of time")
        return False

    def _write(self, kind: str, **facts: object) -> None:
        line = json.dumps({"step": self._step, "kind": kind, **facts}, default=_plain)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read(path: str | Path) -> list[dict[str, object]]:
    """The records of a step, as far as it came."""
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
    """Numbers of NumPy and CuPy as Python's."""
    number = value.item() if hasattr(value, "item") else str(value)
    return None if isinstance(number, float) and math.isnan(number) else number

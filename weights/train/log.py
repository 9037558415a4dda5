"""Log of a training run: one JSON object per line, so that any program can plot its curves.

Each entry of a run contains ``step``, ``minutes`` of training, ``progress`` (0 to 1), the number of ``crops`` so far,
``crops_per_second``, ``lr_factor`` (:mod:`vitnp.weights.train.schedule`), and the mean losses since the entry before
(:mod:`vitnp.weights.train.losses`, :mod:`vitnp.weights.train.selftrain_losses`). The last entry of a finished run
contains ``step``, ``crops`` and ``finished``. Distillation adds ``free_running``, and at the end ``held_out_cosine``
(null without held-out photographs).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from vitnp.errors import OutputError
from vitnp.io.write import write_text


class RunLog:
    """Append entries to a log file; each is written to disk at once.

    Parameters
    ----------
    path : path
        The file; created by the first entry.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = RunLog(Path(folder) / "log.jsonl")
    ...     for step in (100, 200, 300):
    ...         log.write({"step": step, "loss": 1 / 3})
    ...     log.rewind(100)
    ...     print((Path(folder) / "log.jsonl").read_text(), end="")
    {"step": 100, "loss": 0.33333}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def write(self, entry: Mapping[str, object]) -> None:
        """Append an entry; floats are rounded to five significant digits.

        Raises
        ------
        OutputError
            If the log cannot be written.
        """
        rounded = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in entry.items()}
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(rounded) + "\n")
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; free some space, or choose another folder"
            ) from None

    def rewind(self, step: int) -> None:
        """Remove entries after a step, which a resumed run writes again, final scores, and an incomplete last line.

        Raises
        ------
        OutputError
            If the log cannot be written.
        """
        lines = self._path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if self._path.is_file() else []
        write_text(self._path, "".join(f"{line}\n" for line in lines if json.loads(line).get("step", math.inf) <= step))

"""The log of a run: one JSON object a line, so that any program can draw its curves."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vitnp.errors import OutputError
from vitnp.io.write import write_text


class RunLog:
    """Appends entries to a log; each is on disk at once.

    Parameters
    ----------
    path : path

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = RunLog(Path(folder) / "log.jsonl")
    ...     for step in (100, 200, 300):
    ...         journal.write({"step": step, "loss": 1 / 3})
    ...     journal.rewind(100)
    ...     print((Path(folder) / "log.jsonl").read_text(), end="")
    {"step": 100, "loss": 0.33333}
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)

    def write(self, entry: dict) -> None:
        """Append an entry, its floats to five digits.

        Raises
        ------
        OutputError
            When the log can't be written.
        """
        entry = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in entry.items()}
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(
                f"can't write {self._path}: {error.strerror}; free some space, or choose another folder"
            ) from None

    def rewind(self, step: int) -> None:
        """Drop the entries after a step, which a run that goes on from there writes anew, and what a crash cut off.

        Raises
        ------
        OutputError
            When the log can't be written.
        """
        lines = self._path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if self._path.is_file() else []
        write_text(self._path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))

"""``-`` among the photographs: the one that standard input brings."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vitnp.errors import ImageError, OutputError

if TYPE_CHECKING:
    from vitnp.export.outcome import Outcome
    from vitnp.io.find import Photograph

DASH = "-"

# Beginning of the name of the temporary folder.
_PREFIX = "vitnp-stdin-"

# Limit of the bytes of a photograph, and bytes per read.
_MAX_BYTES, _READ_BYTES = 2 << 30, 1 << 20


@contextlib.contextmanager
def photograph_from_stdin(paths: list[str]) -> Iterator[Photograph | None]:
    """Yield the photograph of standard input, as a temporary file, if ``-`` is among the paths; else None.

    Raises
    ------
    ImageError
        If nothing comes, or too much.
    OutputError
        If the temporary file cannot be written.
    """
    if DASH not in paths:
        yield None
        return
    from vitnp.io.find import Photograph
    from vitnp.io.locked_folder import locked, remove_abandoned

    remove_abandoned(tempfile.gettempdir(), _PREFIX)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX))
            stack.enter_context(locked(Path(folder)))
            file = stack.enter_context(open(Path(folder, "stdin"), "xb"))
        except OSError as error:
            raise _unwritten(error) from None
        _copy(file)
        yield Photograph(Path(file.name), Path("stdin"))


def _copy(file: BinaryIO) -> None:
    """Copy standard input to a file."""
    size = 0
    while chunk := _read():
        size += len(chunk)
        if size > _MAX_BYTES:
            raise ImageError(
                f"standard input brings more than {_MAX_BYTES >> 30} GB; one photograph is read from there"
            )
        try:
            file.write(chunk)
            file.flush()
        except OSError as error:
            raise _unwritten(error) from None
    if not size:
        raise ImageError("standard input brings no photograph; `vitnp segment - < photo.jpg` reads one")


def _read() -> bytes:
    try:
        return b"" if sys.stdin is None else sys.stdin.buffer.read(_READ_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"standard input can't be read ({reason}); `vitnp segment - < photo.jpg` reads one") from None


def _unwritten(error: OSError) -> OutputError:
    return OutputError(
        f"can't keep standard input in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to another folder"
    )


def named_as_given(outcomes: Iterator[Outcome], piped: Photograph | None) -> Generator[Outcome, None, None]:
    """Yield outcomes in which the photograph of standard input has the name that the user gave it: ``-``."""
    with contextlib.ExitStack() as stack:
        stack.callback(getattr(outcomes, "close", lambda: None))
        for outcome in outcomes:
            if piped is not None and outcome.photograph == piped.path:
                error = outcome.error
                if error is not None:
                    error = type(error)(str(error).replace(str(piped.path), "standard input"))
                outcome = dataclasses.replace(outcome, photograph=Path(DASH), error=error)
            yield outcome

"""Write lines on standard output and standard error, whatever these can print and whether anyone reads them.

The files that a command writes are its work. What it prints about them must not end it: a stream that is closed, full
or no longer read loses its lines, and nothing else.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

from vitnp.io.path_text import printable

# Errors of standard output, the first of which run() reports by its exit status.
_output_errors: list[str] = []

# What Windows reports for a pipe without a reader.
_BROKEN_PIPE = {errno.EPIPE} | ({errno.EINVAL} if sys.platform == "win32" else set())


def open_missing() -> None:
    """Open the standard streams that were closed when the process started, on the null device.

    Otherwise the next file that is opened would take the number of standard output, and receive what C libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number is taken, which is that of the stream.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the process ends


def print_line(text: str = "") -> None:
    """Print one line on standard output, flushed so that the reader of a pipe sees it without delay.

    Control characters are made visible; see :func:`vitnp.io.path_text.printable`.
    """
    write(printable(text) + "\n", sys.stdout)


def print_error(text: str) -> None:
    """Print one line on standard error, likewise."""
    write(printable(text) + "\n", sys.stderr)


def write(text: str, stream: TextIO | None) -> None:
    """Write text to a standard stream; characters that its encoding lacks become backslash escapes.

    If it cannot be written, the stream is given up: everything that follows is discarded.
    """
    if stream is None:
        return
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError) as error:
        _give_up(stream, error)


def _give_up(stream: TextIO, error: OSError | ValueError) -> None:
    """Discard everything else that is written to a stream, its buffer included."""
    is_output = stream is sys.stdout
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
    except (OSError, ValueError):  # it has no descriptor, or none that can be replaced
        setattr(sys, "stdout" if is_output else "stderr", None)
    # A reader that has gone, as in `| head`, has seen what it wanted.
    if is_output and getattr(error, "errno", None) not in _BROKEN_PIPE:
        reason = getattr(error, "strerror", None) or str(error)
        _output_errors.append(reason)
        print_error(
            f"vitnp: error: standard output can't be written ({reason}), so its lines are lost and the work goes on; "
            "redirect it elsewhere"
        )


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def output_lost() -> bool:
    """Tell whether lines of standard output were lost for another reason than that nobody reads them."""
    return bool(_output_errors)

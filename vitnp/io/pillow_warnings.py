"""Collect the warnings that Pillow raises while it reads an image, to log them as one line with the image's name.

Python's filters and its function that shows warnings belong to the whole process. They are changed while at least one
thread reads an image; warnings of other threads are shown as before.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from vitnp.kernels.threads.fork import call_in_child, unlocked_in_child


class _Collector(threading.local):
    """The messages of the image that the current thread reads; None if it reads none."""

    messages: list[str] | None = None


_collector = _Collector()
_lock = unlocked_in_child(threading.Lock())
_n_readers = 0
_changed = contextlib.ExitStack()


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that receives the messages of the warnings by this thread, each on one line and once.

    Blocks inside each other share the list of the outermost.
    """
    if _collector.messages is not None:
        yield _collector.messages
        return
    _enter()
    messages: list[str] = []
    _collector.messages = messages
    try:
        yield messages
    finally:
        _collector.messages = None
        _leave()


def _enter() -> None:
    global _n_readers
    with _lock:
        if _n_readers == 0:
            _changed.enter_context(warnings.catch_warnings())
            # Without this a message would be shown for the first of several images only, or be an error (-W error).
            warnings.filterwarnings("always", category=UserWarning, module=r"PIL\.")
            warnings.filterwarnings("always", category=RuntimeWarning, module=r"PIL\.")
            warnings.showwarning = _replacement(warnings.showwarning)
        _n_readers += 1


def _leave() -> None:
    global _n_readers
    with _lock:
        _n_readers -= 1
        if _n_readers == 0:
            _changed.close()


def _forget_other_readers() -> None:
    """In a forked child only the thread that forked reads an image, if it did."""
    global _n_readers
    _n_readers, before = int(_collector.messages is not None), _n_readers
    if before and not _n_readers:
        _changed.close()


call_in_child(_forget_other_readers)


def _replacement(show: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function for ``warnings.showwarning`` that collects warnings of readers and shows all others."""

    def collect(message: Warning | str, category: type[Warning], filename: str, *others: Any, **keywords: Any) -> None:
        messages = _collector.messages
        if messages is None:
            show(message, category, filename, *others, **keywords)
        elif (line := one_line(message)) not in messages:
            messages.append(line)

    return collect


def one_line(message: object) -> str:
    r"""Return a message of Pillow, which may quote bytes of a file, as one line of printable characters.

    Examples
    --------
    >>> one_line(ValueError("wrong mode\n\x1b[31m"))
    'wrong mode �[31m'
    """
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(str(message).split()))

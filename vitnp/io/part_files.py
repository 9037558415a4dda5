"""Files being written, ``.vitnp-*.part``: locked by their process, and removed by a later one if it was killed.

The system releases a lock however a process ends, so a file without a lock has been abandoned. Windows has no such
locks; there, files are removed that are older than any photograph takes to write.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_NAME = re.compile(r"\.vitnp-[0-9a-f]{16}\.part")

# Seconds after which a file counts as abandoned on Windows.
_WINDOWS_AGE = 3600


class _Together(NamedTuple):
    """Complete files and their names to come, and what keeps them locked until then."""

    complete: list[tuple[str, Path]]
    locks: contextlib.ExitStack


# Set in a block of `together`.
_together: contextvars.ContextVar[_Together | None] = contextvars.ContextVar("together", default=None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Give the files that are written in the block their names at its end; after an exception, none gets its name.

    Raises
    ------
    OSError
        If a file cannot get its name.
    """
    with contextlib.ExitStack() as locks:
        complete: list[tuple[str, Path]] = []
        token = _together.set(_Together(complete, locks))
        try:
            yield
            while complete:
                os.replace(*complete[0])
                complete.pop(0)
        finally:
            _together.reset(token)
            for part, _ in complete:
                with contextlib.suppress(OSError):
                    os.unlink(part)


@contextlib.contextmanager
def replacing_part(path: Path) -> Iterator[BinaryIO]:
    """Open a file in the folder of `path` that replaces `path` when the block ends without an exception.

    Raises
    ------
    OSError
        If it cannot be written. It is removed then, as after any exception in the block.
    """
    block = _together.get()
    with contextlib.ExitStack() as stack:
        file = _create(path.parent)
        part = file.name
        try:
            # A second descriptor keeps the lock until the file has its name: closing the first may fail on a full disk,
            # and Windows renames closed files only.
            if sys.platform != "win32":
                with contextlib.suppress(OSError):
                    (block.locks if block else stack).callback(os.close, os.dup(file.fileno()))
            with file:
                yield file
            if block is None:
                os.replace(part, path)
            else:
                block.complete.append((part, path))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise


def _create(folder: Path) -> BinaryIO:
    """Create a file and lock it, where files can be locked."""
    while True:
        file = open(folder / f".vitnp-{secrets.token_hex(8)}.part", "xb")  # noqa: SIM115 - closed by the caller
        if _keep(file):
            return file
        file.close()
        with contextlib.suppress(OSError):
            os.unlink(file.name)


def _keep(file: BinaryIO) -> bool:
    """Lock a new file; return False if another process took it for abandoned before that."""
    if sys.platform == "win32":
        return True
    try:
        _lock(file.fileno())
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nothing is ever taken for abandoned
        return True
    return os.path.exists(file.name)


@contextlib.contextmanager
def part_folder(parent: Path) -> Iterator[Path]:
    """Create a folder, for a block in which it is filled and given its name; what is left of it then is removed.

    Raises
    ------
    OSError
        If it cannot be created.
    """
    with contextlib.ExitStack() as stack:
        while True:
            folder = parent / f".vitnp-{secrets.token_hex(8)}.part"
            os.mkdir(folder)
            if sys.platform == "win32":
                break
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                _lock(descriptor)
            if folder.exists():  # else another process took it for abandoned before it was locked
                break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def check_writable(folder: Path) -> None:
    """Create a file in a folder and remove it.

    Raises
    ------
    OSError
        If that is not possible.
    """
    file = _create(folder)
    try:
        with file:
            file.write(bytes(4096))  # on a full disk, empty files can still be created
    finally:
        os.unlink(file.name)


def _lock(descriptor: int) -> None:
    """Lock a file or folder at once; raise BlockingIOError if another process has, OSError if there are no locks."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(folder: str | os.PathLike[str]) -> None:
    """Remove the unfinished files and folders in a folder, of processes of this user that were killed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    """Remove a file or folder of this user unless a process has locked it."""
    if sys.platform == "win32":
        if time.time() - os.stat(path).st_mtime > _WINDOWS_AGE:
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        return
    # Nothing is read: the flags keep a link or a pipe of this name from being followed or waited for.
    is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    access = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR
    descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and (is_folder or stat.S_ISREG(status.st_mode)):
            _lock(descriptor)
            if is_folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
    finally:
        os.close(descriptor)

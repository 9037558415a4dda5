"""Temporary folders that their process keeps locked, and that a later one removes if it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

# File in a folder that its process keeps locked.
_LOCK_FILE = "in-use"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a locked file in a folder.

    The system releases the lock however the process ends: a lock file without a lock is of a process that has ended.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    path = folder / _LOCK_FILE
    with contextlib.ExitStack() as stack:
        # If files cannot be locked, there is no lock file, and other processes never remove the folder.
        with contextlib.suppress(OSError):
            file = stack.enter_context(open(folder / f"{_LOCK_FILE}.new", "wb"))
            fcntl.flock(file, fcntl.LOCK_EX)
            os.rename(file.name, path)  # under this name it is locked from the beginning
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def remove_abandoned(parent: str | os.PathLike[str], prefix: str) -> None:
    """Remove the folders of this user's processes that were killed, whose names begin with `prefix`.

    Everybody may write to the parent folder, so whatever has such a name may be anything, such as a pipe, which would
    never open, or a link.
    """
    if sys.platform == "win32":
        return
    for path in Path(parent).glob(f"{prefix}*/{_LOCK_FILE}"):
        with contextlib.suppress(OSError):
            _remove_unlocked(path)


def _remove_unlocked(lock_file: Path) -> None:
    """Remove the folder of a lock file of this user unless a process has locked it."""
    if sys.platform == "win32":
        return
    import fcntl

    folder = os.lstat(lock_file.parent)
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.getuid():
        return
    descriptor = os.open(lock_file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent, ignore_errors=True)
    finally:
        os.close(descriptor)

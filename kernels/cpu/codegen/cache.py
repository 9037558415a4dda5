"""Machine code on disk: one file per compiled function, whose checksum is verified before the content is used.

A file is only a copy of what can be compiled again. So whatever is wrong with it (empty, cut off, changed, of another
function) means that the function is compiled anew, and a file that cannot be written is not kept. The processor runs
the content: whoever can write the file can do anything that the user can, and a checksum beside the code would not stop
them. So only files and folders are used that belong to the user or to the administrator, and
that nobody else may write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import stat
import tempfile
import time
from collections.abc import Iterator

from vitnp.kernels.cpu.codegen.loader import Compiled

_logger = logging.getLogger(__name__)
_said: set[str] = set()

SUFFIX = ".nbc"
_MAGIC = b"vitnp kernel 2\n"
_DIGEST_BYTES = hashlib.sha256().digest_size

# Not the default permissions (umask), by which others may be allowed to write. Machine code is not secret.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

# Age in seconds of unfinished files whose processes were killed: writing one takes milliseconds.
_LEFTOVER_AGE = 60


class Distrusted(OSError):
    """A file or folder belongs to another user, or others may write it."""


def read_kernel(path: pathlib.Path) -> Compiled | None:
    """Return the machine code that :func:`write_kernel` wrote to a file of this name; None if it must be made anew."""
    try:
        return _unpack(read_verified(path))
    except FileNotFoundError:
        return None
    except Distrusted as error:
        _say_once(logging.WARNING, "compiled kernels are not used: %s; delete the folder", error)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _logger.debug("%s: %s: %s", path, type(error).__name__, error)
        _say_once(logging.INFO, "compiled kernels in %s are damaged", path.parent)
    return None


def write_kernel(path: pathlib.Path, compiled: Compiled) -> None:
    """Keep machine code, unless its file cannot be written."""
    try:
        write_verified(path, _pack(compiled))
    except OSError as error:
        _say_once(
            logging.WARNING,
            "compiled kernels cannot be kept in %s (%s), so the next run compiles them again; "
            "set VITNP_CACHE to another folder",
            path.parent,
            error.strerror or error,
        )


def say_compiling() -> None:
    """Say, once, that kernels are compiled."""
    _say_once(logging.INFO, "compiling kernels for this processor; they are cached, so this happens once")


def _pack(compiled: Compiled) -> bytes:
    """Return the content of a file: a line of JSON, and the object file."""
    head = {"result": compiled.result, "kernels": compiled.kernels, "externals": compiled.externals}
    return json.dumps(head).encode() + b"\n" + compiled.code


def _unpack(content: bytes) -> Compiled:
    head, _, code = content.partition(b"\n")
    fields = json.loads(head)
    return Compiled(code, str(fields["result"]), tuple(fields["kernels"]), tuple(fields["externals"]))


def open_folder(folder: pathlib.Path) -> None:
    """Create a folder for machine code, or check the one that exists. It may be read-only if it holds code.

    Raises
    ------
    OSError
        If there is nothing to read and nothing can be written; :class:`Distrusted` if the folder belongs to another
        user or others may write it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    except OSError:
        if not folder.is_dir():
            raise
    _check_owner(folder, os.stat(folder))
    if not os.access(folder, os.W_OK):
        if not any(folder.glob(f"*{SUFFIX}")):
            raise PermissionError(None, "it is read-only and empty")
        return
    _remove_leftovers(folder)


def read_verified(path: pathlib.Path) -> bytes:
    """Return the content that :func:`write_verified` wrote to a file of this name.

    Raises
    ------
    FileNotFoundError, OSError
        If there is no such file, or it cannot be read; :class:`Distrusted` if it is not the user's own.
    ValueError
        If anything has changed.
    """
    # Opening a pipe would wait for its writer, and a link may lead anywhere.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        _check_owner(path, status)
        content = file.read()
    start = len(_MAGIC) + _DIGEST_BYTES
    payload = memoryview(content)[start:]
    if not content.startswith(_MAGIC) or content[len(_MAGIC) : start] != _checksum(path, payload):
        raise ValueError("the checksum is wrong")
    return bytes(payload)


def write_verified(path: pathlib.Path, payload: bytes) -> None:
    """Write a file for :func:`read_verified`, in full or not at all; the last of several writers wins.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=".vitnp-", suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.writelines((_MAGIC, _checksum(path, payload), payload))
        os.chmod(temporary, _FILE_MODE)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def claim(path: pathlib.Path, *, wait: bool = False) -> Iterator[bool]:
    """Keep other processes from compiling the function of a file in the meantime.

    The operating system ends a claim with its process, however that ends. Without such claims (Windows, some network
    drives, a folder that is read-only) everybody compiles.

    Parameters
    ----------
    path : Path
    wait : bool
        Whether to wait until others have finished.

    Yields
    ------
    bool
        False if another process has claimed it.
    """
    lock = path.with_name(f".vitnp-{path.name}.lock")
    try:
        import fcntl

        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
    except (ImportError, OSError):
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Remove unfinished files of processes that were killed."""
    for path in folder.glob(".vitnp-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _LEFTOVER_AGE:
                path.unlink()


def _checksum(path: pathlib.Path, payload: bytes | memoryview) -> bytes:
    """Return the checksum of a content under a name, so that files which were exchanged are noticed too."""
    digest = hashlib.sha256(path.name.encode() + b"\0")
    digest.update(payload)
    return digest.digest()


def _check_owner(path: pathlib.Path, status: os.stat_result) -> None:
    """Check that only the user or the administrator can write a file or folder; Windows has other means for that."""
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise Distrusted(None, f"{path} belongs to another user")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise Distrusted(None, f"others may write {path}")


def _say_once(level: int, message: str, *arguments: object) -> None:
    """Log a message once per process: all functions are loaded one after the other, and share their trouble."""
    if message not in _said:
        _said.add(message)
        _logger.log(level, message, *arguments)

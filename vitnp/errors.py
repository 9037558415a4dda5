"""Errors that vitnp raises for its users: the message is one clear sentence, printed without a traceback."""

from __future__ import annotations

import os


class VitnpError(Exception):
    """Base class of all errors that vitnp raises on purpose.

    The message is one sentence: what was given, what is allowed, and what to do. The command line prints it unchanged.
    """


class ImageError(VitnpError):
    """A photograph cannot be read or used.

    Attributes
    ----------
    path : str or None
        Photograph or folder that the error is about, where it is found before anything is read from it.
    """

    def __init__(self, *arguments: object, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(*arguments)
        self.path = None if path is None else os.fspath(path)


class CheckpointError(VitnpError):
    """A checkpoint cannot be found, downloaded, read or used."""


class OutputError(VitnpError):
    """A result cannot be written."""


class ClusterError(VitnpError):
    """A cluster of machines cannot be reached or used."""


class DeviceError(VitnpError):
    """A GPU cannot be found or used, or its memory is too small."""


class UsageError(VitnpError, ValueError):
    """An option or argument is not allowed, alone or with the others."""

"""The errors that users may meet: each is one clear sentence, shown without a traceback."""

from __future__ import annotations


class VitnpError(Exception):
    """Base of all errors that vitnp raises on purpose.

    The message is a single sentence: what is wrong, with which file, and what to do about it. The command line
    prints it as it stands.
    """


class ImageError(VitnpError):
    """A photograph that can't be read or used."""


class CheckpointError(VitnpError):
    """A checkpoint that can't be found, fetched, read or used."""


class OutputError(VitnpError):
    """A result that can't be written."""


class ClusterError(VitnpError):
    """A cluster that can't be reached or used."""


class DeviceError(VitnpError):
    """A GPU that can't be found, or can't be used."""


class UsageError(VitnpError, ValueError):
    """A request that makes no sense: a wrong option or argument."""

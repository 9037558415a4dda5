"""``-`` among the photographs: the one that standard input brings."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitnp.errors import ImageError

if TYPE_CHECKING:
    from vitnp.io.find import Photograph

DASH = "-"
# Beginning of the name of the temporary folder.
TEMPORARY = "vitnp-stdin-"


@contextlib.contextmanager
def photograph_from_stdin(paths: list[str]) -> Iterator[Photograph | None]:
    """Yield the photograph of standard input, as a temporary file, if ``-`` is among the paths; else None.

    Raises
    ------
    ImageError
        If nothing comes.
    """
    if DASH not in paths:
        yield None
        return
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    if not data:
        raise ImageError("standard input brings no photograph; `vitnp segment - < photo.jpg` reads one")
    from vitnp.io.find import Photograph

    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        path = Path(folder, "stdin")
        path.write_bytes(data)
        yield Photograph(path, Path(path.name))

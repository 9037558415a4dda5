"""Keep libtiff from printing on standard error; what is wrong with a file is in the error or the notice of Pillow."""

from __future__ import annotations

import contextlib
import ctypes


def silence() -> None:
    """Remove the error handler of Pillow's libtiff, for the whole process, where the library can be reached.

    libtiff prints its own lines about damaged files, which name no file. It is for commands, to which the process
    belongs; where libtiff is linked statically, as on Windows, nothing changes.
    """
    from PIL import _imaging

    with contextlib.suppress(OSError, AttributeError):
        # Symbols of the libraries that the module was linked with are found through the module.
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        set_handler(None)

"""Kinds of files by extension: photographs, and pictures that vitnp does not read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# fmt: off
EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".heic", ".heif", ".hif", ".avif",
})

_LEFT_OUT = {
    "camera raw":
        ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 "
        ".rwl .sr2 .srf .srw .x3f",
    "JPEG 2000": ".jp2 .j2k .j2c .jpc .jpf .jpx .jpm",
    "JPEG XL": ".jxl",
    "JPEG XR": ".jxr .wdp .hdp",
    "PDF": ".pdf",
    "PostScript": ".eps .ps .ai",
    "SVG": ".svg .svgz",
    "Photoshop": ".psd .psb",
    "GIMP": ".xcf",
    "OpenEXR or HDR": ".exr .hdr",
    "Netpbm": ".pbm .pgm .ppm .pnm .pam",
    "Targa": ".tga",
    "DICOM": ".dcm",
    "icon": ".ico .icns .cur",
    "video":
        ".3gp .avi .flv .insv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv",
}
# fmt: on

# Kind of each extension of pictures and videos that are left out of folders.
LEFT_OUT = {extension: kind for kind, extensions in _LEFT_OUT.items() for extension in extensions.split()}

# Formats that need a package which may be missing: extensions, module, and what to do.
_NEEDS = (
    ("HEIC", frozenset({".heic", ".heif", ".hif"}), "pillow_heif", "pip install 'vitnp[heic]'"),
    ("AVIF", frozenset({".avif"}), "PIL.AvifImagePlugin", "install a newer Pillow"),
)


def missing_support(path: Path) -> tuple[str, str] | None:
    """Return format and advice for a photograph that cannot be read because a package is missing, else None.

    The extension decides, but a file that is not of such a format, whatever its extension, is no such photograph.
    """
    extension = path.suffix.lower()
    for name, extensions, module, advice in _NEEDS:
        if extension in extensions and importlib.util.find_spec(module) is None:
            try:
                with open(path, "rb") as file:
                    return (name, advice) if file.read(8)[4:] == b"ftyp" else None
            except OSError:  # reading it as a photograph will say why
                return None
    return None

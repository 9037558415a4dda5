"""What goes out: files written whole or not at all, their names, and the stamp by which vitnp knows its own."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import secrets
import stat
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vitnp.errors import OutputError
from vitnp.pictures import Box, bounding_boxes, cutout, overlay

if TYPE_CHECKING:
    from PIL import Image

    from vitnp.images import Photograph

__all__ = [
    "LABELS_SUFFIX",
    "SUFFIXES",
    "Box",
    "bounding_boxes",
    "cutout",
    "is_own_output",
    "make_folder",
    "output_stems",
    "overlay",
    "parameters_hash",
    "refuse_foreign",
    "replacing",
    "stamp",
    "write_json",
    "write_npy",
    "write_npz",
    "write_png",
    "write_text",
]

SUFFIXES = {
    "mask": "_mask.png",
    "overlay": "_overlay.png",
    "cutout": "_cutout.png",
    "soft": "_soft.png",
    "score": "_score.npy",
    "keys": "_keys.npy",
    "npz": ".npz",
}

# Written beside those above when classes are asked for.
LABELS_SUFFIX = "_labels.png"

_PNG = b"\x89PNG\r\n\x1a\n"

# A stamp is a few hundred bytes near a file's start (PNG) or at its very end (npy, npz); no more is looked at.
_STAMP_BYTES = 4096
_STAMP_CHUNKS = 32

_WRITE_BYTES = 1 << 24

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than allowed here; write elsewhere",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "the folder doesn't exist; make it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another one",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another name",
    errno.EEXIST: "a file of this name is in the way; remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


# --- Files, whole or not at all --------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place at the end, and only when all went well.

    The bytes go to a hidden temporary file in the same folder, which replaces `path` in one step when the block ends.
    After any exception, an interruption from the keyboard too, it is removed and what stood at `path` is untouched. The
    new file has the permissions that any new file gets (umask).

    Raises
    ------
    OutputError
        When the system refuses: full disk, no permission, no such folder and so on.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/a.txt") as file:
    ...         _ = file.write(b"all of it")
    ...     os.listdir(folder)
    ['a.txt']
    """
    path = Path(path)
    temporary = path.with_name(f".vitnp-{secrets.token_hex(8)}.part")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError | ValueError) -> OutputError:
    advice = _ADVICE.get(getattr(error, "errno", None))
    return OutputError(f"can't write {path}: {advice or f'{error}; choose another place'}")


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises
    ------
    OutputError
        When the system refuses, or a file is in the way.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _refused(Path(path), error) from None


def write_png(
    path: str | os.PathLike[str], picture: np.ndarray | Image.Image, text: Mapping[str, str] | None = None
) -> None:
    """Write a PNG with vitnp's stamp.

    Parameters
    ----------
    path : path
    picture : PIL image or array
        (H, W) uint8 or uint16 grey, (H, W, 3) uint8 RGB or (H, W, 4) uint8 RGBA; bool becomes 0 and 255.
    text : mapping of str to str
        Further text chunks, such as "vitnp:parameters" and "vitnp:photograph"; see :func:`stamp`.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if isinstance(picture, np.ndarray):
        if picture.dtype == bool:
            picture = picture.view(np.uint8) * np.uint8(255)
        picture = Image.fromarray(np.ascontiguousarray(picture))
    chunks = PngInfo()
    for key, value in _stamped(text).items():
        chunks.add_text(key, value)
    # Level 6 takes two to three times as long as 3 on photographs, to save a tenth of the space.
    level = 3 if picture.mode in ("RGB", "RGBA") else 6
    with replacing(path) as file:
        picture.save(file, "PNG", pnginfo=chunks, compress_level=level)


def write_npy(path: str | os.PathLike[str], array: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write an array for ``np.load``, with vitnp's stamp behind the data, where ``np.load`` doesn't look.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    with replacing(path) as file:
        _write_array(file, array)
        file.write(b"\n" + canonical_json(_stamped(text)).encode())


def write_npz(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, object] | None = None,
    *,
    compressed: bool = True,
) -> None:
    """Write several arrays for ``np.load``, and metadata; the same content gives the same bytes.

    Parameters
    ----------
    path : path
    arrays : mapping of str to array
    metadata : mapping
        Anything JSON knows. It is stored as one more array, "metadata": a string to be read by
        ``json.loads(str(np.load(path)["metadata"]))``. Entries that begin with "vitnp:" are the file's stamp too.
    compressed : bool
        Whether to deflate.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    metadata = dict(metadata or {})
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    own = {key: str(value) for key, value in metadata.items() if key.startswith("vitnp:")}
    with replacing(path) as file, zipfile.ZipFile(file, "w", method, allowZip64=True) as archive:
        for name, array in {**arrays, "metadata": np.array(canonical_json(metadata))}.items():
            # ZipInfo's own date is the constant 1980-01-01, whereas ZipFile.write would store the clock's.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = method
            with archive.open(member, "w", force_zip64=True) as entry:
                _write_array(entry, array)
        archive.comment = canonical_json(_stamped(own)).encode()


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """An array in NumPy's format 1.0; unlike ``np.save`` it reports a full disk as such."""
    array = np.asanyarray(array, order="C")
    if array.dtype.hasobject:
        raise TypeError("arrays of Python objects can't be stored")
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    if array.size:
        data = memoryview(array.reshape(-1).view(np.uint8))
        file.writelines(data[start : start + _WRITE_BYTES] for start in range(0, len(data), _WRITE_BYTES))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as indented JSON.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    write_text(path, json.dumps(value, indent=2, default=_plain) + "\n")


# --- Stamps: whose file is this, and is it still good? ---------------------------------------------------------------


def parameters_hash(parameters: Mapping[str, object]) -> str:
    """Fingerprint of parameters, whatever their order: 32 hexadecimal digits of BLAKE2b over canonical JSON.

    Examples
    --------
    >>> parameters_hash({"seed": 0, "size": 320}) == parameters_hash({"size": 320, "seed": 0})
    True
    """
    return hashlib.blake2b(canonical_json(parameters).encode(), digest_size=16).hexdigest()


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: object) -> object:
    """JSON for what json doesn't know: mappings, NumPy's numbers and arrays, and paths."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _stamped(text: Mapping[str, str] | None) -> dict[str, str]:
    from vitnp import __version__

    return {"Software": f"vitnp {__version__}", **(text or {})}


def stamp(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """Read what vitnp noted in a file it wrote; pixels and arrays aren't decoded.

    Parameters
    ----------
    path : path
        Of a PNG, .npy or .npz file, or of anything at all.

    Returns
    -------
    dict of str to str, or None
        The entries whose names begin with "vitnp:"; None when vitnp didn't write the file, or there is none. Never
        raises, whatever the file holds.
    """
    try:
        # Only regular files: opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            head = file.read(len(_PNG))
            if head == _PNG:
                entries = _png_text(file)
            elif head.startswith((b"\x93NUMPY", b"PK\x03\x04")):
                file.seek(-min(_STAMP_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
                entries = _last_json(file.read())
            else:
                return None
        if not str(entries.get("Software")).startswith("vitnp "):
            return None
        return {key: value for key, value in entries.items() if key.startswith("vitnp:") and isinstance(value, str)}
    except (OSError, ValueError, RecursionError):
        return None


def _png_text(file: BinaryIO) -> dict[str, str]:
    """tEXt chunks that stand before a PNG's pixels (PNG specification, 11.3.3.2)."""
    entries = {}
    for _ in range(_STAMP_CHUNKS):
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8 or kind == b"IDAT":
            break
        if kind == b"tEXt" and length <= _STAMP_BYTES:
            key, _, value = file.read(length).partition(b"\0")
            entries[key.decode("latin-1")] = value.decode("latin-1")
            length = 0
        file.seek(length + 4, os.SEEK_CUR)
    return entries


def _last_json(tail: bytes) -> dict[str, str]:
    """The JSON object with which a file ends, when it's a stamp."""
    start = tail.rfind(b'{"Software":"vitnp ')
    entries = json.loads(tail[start:]) if start >= 0 else {}
    return entries if isinstance(entries, dict) else {}


def is_own_output(path: str | os.PathLike[str]) -> bool:
    """Whether vitnp wrote this file; see :func:`stamp`."""
    return stamp(path) is not None


def refuse_foreign(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Make sure that writing to `paths` destroys nothing that vitnp didn't write.

    Raises
    ------
    OutputError
        For the first one that exists and isn't vitnp's own.
    """
    for path in paths:
        if os.path.lexists(path) and not is_own_output(path):
            raise OutputError(f"{path}: this file exists and vitnp didn't write it; move it away or give --overwrite")


# --- Names -----------------------------------------------------------------------------------------------------------


def output_stems(photographs: Sequence[Photograph], out_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Choose what the names of each photograph's outputs begin with.

    That is the photograph's name without its extension, beside it, or at its place below `out_dir`. Names differ even
    on file systems that don't tell upper from lower case. Where two would be the same (``a.jpg`` and ``a.png``), or an
    output would have the name of a photograph that is itself an input (``a.jpg`` and ``a_mask.png``), the extension
    stays (``a.jpg_mask.png``); where that isn't enough, since files of one name come from several folders, these
    folders' names lead (``2023/a.jpg_mask.png``); and at last a number follows.

    Parameters
    ----------
    photographs : sequence of Photograph
    out_dir : path, optional
        Nothing is made there, see :func:`make_folder`.

    Returns
    -------
    list of Path
        In the order of `photographs`; add one of `SUFFIXES`.

    Examples
    --------
    >>> from vitnp.images import Photograph
    >>> names = ["a.jpg", "a.png", "b.jpg"]
    >>> [stem.as_posix() for stem in output_stems([Photograph(Path(name), Path(name)) for name in names], "out")]
    ['out/a.jpg', 'out/a.png', 'out/b']
    """
    inputs = {_fold(photograph.path) for photograph in photographs}
    choices = [_choices(index, photograph, out_dir) for index, photograph in enumerate(photographs)]
    chosen = [next(choice) for choice in choices]
    folded = [_fold(stem) for stem in chosen]
    steps = [0] * len(chosen)
    while True:
        groups = defaultdict(list)
        for index, name in enumerate(folded):
            groups[name].append(index)
        moving = []
        for name, group in groups.items():
            if len(group) > 1 or any(name + suffix in inputs for suffix in (*SUFFIXES.values(), LABELS_SUFFIX)):
                # Those that have given way least so far give way next.
                least = min(steps[index] for index in group)
                moving += [index for index in group if steps[index] == least]
        if not moving:
            return chosen
        for index in moving:
            chosen[index] = next(choices[index])
            folded[index] = _fold(chosen[index])
            steps[index] += 1


def _fold(path: Path) -> str:
    """A spelling that is the same for paths which some file system would take for one file."""
    full = os.path.join(os.path.realpath(path.parent), path.name)
    return unicodedata.normalize("NFC", full.casefold())


def _choices(index: int, photograph: Photograph, out_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Stems for a photograph, the best one first; the last ones, of which there is no end, hold its number."""
    place = photograph.relative
    base = photograph.path.parent if out_dir is None else Path(out_dir, place.parent)
    yield base / photograph.path.stem
    yield base / photograph.path.name
    if out_dir is not None:
        folders = Path(os.path.abspath(photograph.path)).parts[1:-1]
        for count in range(len(place.parts), len(folders) + 1):
            base = Path(out_dir, *folders[-count:])
            yield base / photograph.path.name
    for repeat in itertools.count(1):
        yield base / f"{photograph.path.name}{f'-{index + 1}' * repeat}"

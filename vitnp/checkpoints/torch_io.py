"""Read ``.pth`` and ``.pt`` files without torch, and without running what they hold.

Two containers exist. Since torch 1.6 a file is a zip archive of ``data.pkl`` (the object, tensors left out) and one
uncompressed entry per storage. Before that it was a stream: a magic number, the pickled object, the list of storages,
then their raw bytes. In both, a tensor is a shape and strides over a storage.

Storages are memory-mapped where they lie; tensors are read-only views of them.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vitnp.checkpoints.safe_unpickler import Inert, Named, PickleRefused, check_key, load_pickle
from vitnp.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
MAX_PICKLE = 64 * 2**20  # bytes; a training checkpoint's takes less than one million
_MAX_DIMENSIONS = 32

# Little-endian by default; bfloat16 is no NumPy type, so it comes as bits.
_STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
    "torch.ComplexFloatStorage": "<c8",
    "torch.ComplexDoubleStorage": "<c16",
}

# Named by training checkpoints beside the weights. _codecs.encode is how protocol 2 writes the bytes of a NumPy scalar.
_INERT = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat array that only this module makes; None while the place of its bytes isn't known yet."""

    flat: np.ndarray | None


def read_torch_file(path: str | os.PathLike[str]) -> object:
    """Read what ``torch.save`` wrote: a state dict, or a training checkpoint around one.

    Parameters
    ----------
    path : path
        ``.pth``, ``.pt`` or ``.bin``, of torch 0.4 or newer, in either container.

    Returns
    -------
    object
        Dicts, lists, tuples and scalars as they were saved, tensors as read-only arrays (bfloat16 as float32).
        ``argparse.Namespace`` and NumPy scalars come as :class:`vitnp.checkpoints.safe_unpickler.Inert` placeholders.

    Raises
    ------
    CheckpointError
        Not such a file, damaged, cut off, or it names any other Python object: those are refused, since they could
        run code. The file is never trusted: no byte outside it is read, no class of it is constructed.

    Examples
    --------
    >>> read_torch_file("dino_deitsmall16_pretrain.pth")["cls_token"].shape         # doctest: +SKIP
    (1, 1, 384)
    """
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise PickleRefused("it is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if mapped[:4] == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    return _read_zip(mapped, archive)
            return _read_legacy(mapped)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except PickleRefused as error:
        raise CheckpointError(f"{path} can't be used as a torch file: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} can't be used as a torch file: it claims more memory than there is") from None
    except (zipfile.BadZipFile, ArithmeticError, LookupError, RuntimeError, ValueError, struct.error) as error:
        detail = str(error).strip().rstrip(".") or type(error).__name__
        raise CheckpointError(f"{path} can't be used as a torch file: it is damaged or cut off ({detail})") from None


def _read_zip(mapped: mmap.mmap, archive: zipfile.ZipFile) -> object:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise PickleRefused("it is a zip archive, but not one that torch.save wrote (no single data.pkl)")
    root = roots[0]
    buffer = memoryview(mapped)
    order = "<"
    if f"{root}byteorder" in entries and bytes(_stored(buffer, entries[f"{root}byteorder"])) == b"big":
        order = ">"
    flats: dict[tuple[str, str], np.ndarray] = {}
    total = 0

    def persistent(identity: Any) -> _Storage:
        nonlocal total
        kind, key, count, _ = _storage_identity(identity)
        if (kind, key) not in flats:
            if f"{root}data/{key}" not in entries:
                raise PickleRefused(f"it is damaged (storage {key[:100]!r} is missing)")
            entry = entries[f"{root}data/{key}"]
            total += entry.file_size
            if total > len(buffer):  # a directory can name the same bytes many times over
                raise PickleRefused("it is damaged (its storages overlap)")
            flats[kind, key] = _decode(_stored(buffer, entry), kind, count, order)
        return _Storage(flats[kind, key])

    if entries[f"{root}data.pkl"].file_size > MAX_PICKLE:
        raise PickleRefused("its data.pkl is too large for a checkpoint")
    return _load(io.BytesIO(_stored(buffer, entries[f"{root}data.pkl"])), persistent)


def _stored(buffer: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of an uncompressed entry where they lie in the file, after its checksum was found right."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise PickleRefused("an entry of it is compressed or encrypted, which torch.save never does")
    header = bytes(buffer[entry.header_offset : entry.header_offset + 30]) if entry.header_offset >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise PickleRefused("it is damaged (an entry is not where its directory says)")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    content = buffer[start : start + entry.file_size]
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise PickleRefused(f"it is damaged (entry {entry.filename[:100]!r} differs from its checksum)")
    return content


def _read_legacy(mapped: mmap.mmap) -> object:
    nothing = _refuse_storage
    try:
        recognized = load_pickle(mapped, {}, nothing) == LEGACY_MAGIC
    except PickleRefused:
        recognized = False
    if not recognized:
        raise PickleRefused("neither of torch's two containers begins like this")
    if load_pickle(mapped, {}, nothing) != _LEGACY_PROTOCOL:
        raise PickleRefused("its protocol is not the one that torch 0.4 to 1.5 wrote")
    load_pickle(mapped, {}, nothing)  # sizes of C types of the machine that wrote it
    start = mapped.tell()

    # The bytes of the storages follow the object. So it is interpreted twice: first for the kinds of its storages, which
    # say where each lies, then for the tensors.
    kinds: dict[str, tuple[str, int]] = {}

    def collect(identity: Any) -> _Storage:
        kind, key, count, _ = _storage_identity(identity)
        if kinds.setdefault(key, (kind, count)) != (kind, count):
            raise PickleRefused(f"it is damaged (storage {key[:100]!r} is of two kinds)")
        return _Storage(None)

    _load(mapped, collect)
    keys = load_pickle(mapped, {}, nothing)
    if type(keys) is not list:
        raise PickleRefused("it is damaged (no list of storages)")
    buffer = memoryview(mapped)
    position = mapped.tell()
    flats: dict[str, np.ndarray] = {}
    for key in keys:
        if type(key) is not str or key not in kinds or key in flats:
            raise PickleRefused("it is damaged (its list of storages isn't that of its tensors)")
        kind, count = kinds[key]
        if buffer[position : position + 8] != struct.pack("<q", count):
            raise PickleRefused(f"it is damaged or cut off (storage {key[:100]!r} isn't as long as its tensors say)")
        end = position + 8 + count * np.dtype(_STORAGES[kind]).itemsize
        flats[key] = _decode(buffer[position + 8 : end], kind, count, "<")
        position = end

    def persistent(identity: Any) -> _Storage:
        _, key, _, view = _storage_identity(identity)
        flat = flats[key]
        if view is None:
            return _Storage(flat)
        offset, count = view
        if offset + count > len(flat):
            raise PickleRefused("it is damaged (a storage view beyond its storage)")
        return _Storage(flat[offset : offset + count])

    mapped.seek(start)
    return _load(mapped, persistent)


def _load(stream: Any, persistent: Callable[[Any], _Storage]) -> object:
    names: dict[str, Callable[..., object]] = {
        "collections.OrderedDict": _ordered_dict,
        "torch.Size": _size,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
    }
    for name in _INERT:
        names[name] = lambda *_, name=name: Inert(name)
    for name in _STORAGES:
        names[name] = _refuse_storage
    return load_pickle(stream, names, persistent)


def _refuse_storage(*_: object) -> _Storage:
    raise PickleRefused("it is damaged (a storage where none belongs)")


def _ordered_dict(items: Any = None) -> dict[Any, object]:
    """Python 3 fills the dict later; Python 2 passes a list of pairs, used up here so that no memo can multiply it."""
    if items is None:
        return {}
    if type(items) is not list:
        raise PickleRefused("it is damaged (a dict made of no list)")
    pairs = items.copy()
    items.clear()
    return {check_key(key): value for key, value in pairs}


def _size(sizes: Any = ()) -> tuple[int, ...]:
    if type(sizes) not in (tuple, list) or len(sizes) > _MAX_DIMENSIONS or not all(map(_is_count, sizes)):
        raise PickleRefused("it is damaged (a tensor of impossible shape)")
    return tuple(sizes)


def _storage_identity(identity: Any) -> tuple[str, str, int, tuple[int, int] | None]:
    """Check ("storage", type, key, device, count[, view]): the type's name, key, count, and (offset, count) of a view."""
    if type(identity) is not tuple or len(identity) not in (5, 6):
        raise PickleRefused("it is damaged (a storage of no known form)")
    word, kind, key, _, count, *view = identity
    if word != "storage" or not isinstance(kind, Named) or kind.name not in _STORAGES:
        raise PickleRefused("it is damaged (a storage of no known type)")
    if type(key) is not str or not _is_count(count):
        raise PickleRefused("it is damaged (a storage without a name or a size)")
    if not view or view[0] is None:
        return kind.name, key, count, None
    _, offset, size = view[0]
    if not _is_count(offset) or not _is_count(size):
        raise PickleRefused("it is damaged (a storage view without a place)")
    return kind.name, key, count, (offset, size)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _decode(content: memoryview, kind: str, count: int, order: str) -> np.ndarray:
    """The numbers of one storage; a view of the file, except bfloat16 (to float32) and what lies misaligned."""
    dtype = np.dtype(_STORAGES[kind]).newbyteorder(order)
    if len(content) != count * dtype.itemsize:
        raise PickleRefused("it is damaged or cut off (a storage isn't as long as its tensors say)")
    flat = np.frombuffer(content, dtype) if count else np.empty(0, dtype)
    if kind == "torch.BoolStorage":
        flat = flat != 0
    elif kind == "torch.BFloat16Storage":
        flat = bfloat16_to_float32(flat)
    flat = np.require(flat, flat.dtype.newbyteorder("="), ["A"])
    flat.flags.writeable = False
    return flat


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Numbers from the bits of bfloat16: the upper half of a float32, any shape.

    Examples
    --------
    >>> bfloat16_to_float32(np.array([0x3F80, 0xC000], np.uint16))
    array([ 1., -2.], dtype=float32)
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _tensor(storage: object, offset: Any, shape: Any, strides: Any, *_: object) -> np.ndarray | None:
    """A strided view of a storage, after it was made sure that every element of it lies inside."""
    if not isinstance(storage, _Storage):  # an array would do for NumPy, but a strided one has no bounds to check
        raise PickleRefused("it is damaged (a tensor without a storage)")
    shape, strides = _size(shape), _size(strides)
    if len(shape) != len(strides) or not _is_count(offset):
        raise PickleRefused("it is damaged (a tensor of impossible shape)")
    if storage.flat is None:
        return None
    if math.prod(shape) == 0:
        return np.empty(shape, storage.flat.dtype)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if last >= len(storage.flat):
        raise PickleRefused("it is damaged (a tensor reaches beyond its storage)")
    itemsize = storage.flat.itemsize
    steps = [stride * itemsize if length > 1 else 0 for length, stride in zip(shape, strides)]
    return np.lib.stride_tricks.as_strided(storage.flat[offset:], shape, steps, writeable=False)

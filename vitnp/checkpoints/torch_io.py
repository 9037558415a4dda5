"""Read ``.pth`` and ``.pt`` files without torch, and without running code from them.

There are two containers. Since torch 1.6 a file is a zip archive of ``data.pkl`` (the object without its tensors) and
one uncompressed entry per storage. Before, it was a stream: a magic number, a protocol number, the pickled object, the
list of its storages, then their raw bytes. In both, a tensor is a shape and strides over a storage.

Files are memory-mapped, and tensors are read-only views of them.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zipfile
import zlib
from typing import Literal

import numpy as np

from vitnp.checkpoints.pickled_objects import UnpicklingError
from vitnp.checkpoints.safe_unpickler import MAX_PICKLE_BYTES, load_pickle
from vitnp.checkpoints.torch_storage import (
    Storage,
    StorageId,
    decode_storage,
    load_torch_pickle,
    parse_storage_id,
    refuse_storage,
    storage_bytes,
)
from vitnp.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_DIRECTORY_BYTES = 16 * 2**20  # of a zip archive; one of 10,000 storages takes less than 1 MB
_ZIP_LOCAL_HEADER_BYTES = 30


def read_torch_file(path: str | os.PathLike[str]) -> object:
    """Read what ``torch.save`` wrote: a state dict, or a training checkpoint around one.

    Parameters
    ----------
    path : path
        ``.pth``, ``.pt`` or ``.bin`` file of torch 0.4 or newer, in either container.

    Returns
    -------
    object
        Dicts, lists, tuples and scalars as they were saved, tensors as read-only arrays (bfloat16 as float32).
        Paths, devices, options, NumPy scalars and arrays, and what else :mod:`vitnp.checkpoints.inert` lists become
        :class:`vitnp.checkpoints.pickled_objects.Placeholder`.

    Raises
    ------
    CheckpointError
        If the file is something else, is damaged or cut off, or names any other Python object, since that could run
        code. The file isn't trusted: no byte outside it is read, and no class that it names is instantiated.

    Examples
    --------
    >>> read_torch_file("dino_deitsmall16_pretrain.pth")["cls_token"].shape         # doctest: +SKIP
    (1, 1, 384)
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # opening it might never end
        raise CheckpointError(f"{path} can't be read: it is a pipe or device")
    try:
        with _DirectoryReader(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise UnpicklingError("it is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if mapped[:4] == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    return _read_zip(mapped, archive)
            return _read_legacy(mapped)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except UnpicklingError as error:
        raise CheckpointError(f"{path} can't be used as a torch file: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} can't be used as a torch file: it claims more memory than there is") from None
    except (zipfile.BadZipFile, ArithmeticError, LookupError, RuntimeError, ValueError, struct.error) as error:
        detail = str(error).strip().rstrip(".") or type(error).__name__
        raise CheckpointError(f"{path} can't be used as a torch file: it is damaged or cut off ({detail})") from None


class _DirectoryReader(io.FileIO):
    """A file of which zipfile reads the directory, unless that is so long that its entries would fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise UnpicklingError("its zip directory is too long for a checkpoint")
        return super().read(size)


def _read_zip(mapped: mmap.mmap, archive: zipfile.ZipFile) -> object:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UnpicklingError("it is a zip archive, but not one that torch.save wrote (no single data.pkl)")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise UnpicklingError("it is a TorchScript program: save the state dict of its module alone")
    buffer = memoryview(mapped)
    byteorder: Literal["<", ">"] = "<"
    if f"{root}byteorder" in entries and bytes(_entry_content(buffer, entries[f"{root}byteorder"])) == b"big":
        byteorder = ">"
    flats: dict[tuple[str, str], np.ndarray] = {}
    total_bytes = 0

    def load_storage(persistent_id: object) -> Storage:
        nonlocal total_bytes
        type_name, key, size, _ = parse_storage_id(persistent_id)
        if (type_name, key) not in flats:
            if f"{root}data/{key}" not in entries:
                raise UnpicklingError(f"it is damaged (storage {key[:100]!r} is missing)")
            entry = entries[f"{root}data/{key}"]
            total_bytes += entry.file_size
            if total_bytes > len(buffer):  # many entries of the directory may name the same bytes
                raise UnpicklingError("it is damaged (its storages overlap)")
            flats[type_name, key] = decode_storage(_entry_content(buffer, entry), type_name, size, byteorder)
        return Storage(flats[type_name, key])

    if entries[f"{root}data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise UnpicklingError("its data.pkl is too large for a checkpoint")
    return load_torch_pickle(io.BytesIO(_entry_content(buffer, entries[f"{root}data.pkl"])), load_storage)


def _entry_content(buffer: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of an uncompressed entry, without a copy, after verifying their checksum."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise UnpicklingError("an entry of it is compressed or encrypted, which torch.save never does")
    start = entry.header_offset
    header = bytes(buffer[start : start + _ZIP_LOCAL_HEADER_BYTES]) if start >= 0 else b""
    if len(header) < _ZIP_LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise UnpicklingError("it is damaged (an entry is not where its directory says)")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start += _ZIP_LOCAL_HEADER_BYTES + name_length + extra_length
    content = buffer[start : start + entry.file_size]
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise UnpicklingError(f"it is damaged (entry {entry.filename[:100]!r} differs from its checksum)")
    return content


def _read_legacy(mapped: mmap.mmap) -> object:
    """Read the older container.

    The storages follow the object that uses them. So the object is interpreted twice: first to learn the types and
    sizes of its storages, which determine where each of them lies, then to build its tensors.
    """
    _skip_legacy_header(mapped)
    start = mapped.tell()
    storages: dict[str, StorageId] = {}

    def collect_storage(persistent_id: object) -> Storage:
        storage = parse_storage_id(persistent_id)._replace(view=None)
        if storages.setdefault(storage.key, storage) != storage:
            raise UnpicklingError(f"it is damaged (storage {storage.key[:100]!r} has two types or sizes)")
        return Storage(None)

    load_torch_pickle(mapped, collect_storage)
    flats = _read_legacy_storages(mapped, storages)

    def load_storage(persistent_id: object) -> Storage:
        _, key, _, view = parse_storage_id(persistent_id)
        flat = flats[key]
        if view is None:
            return Storage(flat)
        offset, size = view
        if offset + size > len(flat):
            raise UnpicklingError("it is damaged (a storage view beyond its storage)")
        return Storage(flat[offset : offset + size])

    mapped.seek(start)
    return load_torch_pickle(mapped, load_storage)


def _skip_legacy_header(mapped: mmap.mmap) -> None:
    """Check the magic number and the protocol, and skip the sizes of C types on the machine that wrote the file."""
    try:
        recognized = load_pickle(mapped, {}, refuse_storage) == LEGACY_MAGIC
    except UnpicklingError:
        recognized = False
    if not recognized:
        raise UnpicklingError("neither of torch's two containers begins like this")
    if load_pickle(mapped, {}, refuse_storage) != _LEGACY_PROTOCOL:
        raise UnpicklingError("its protocol is not the one that torch 0.4 to 1.5 wrote")
    load_pickle(mapped, {}, refuse_storage)


def _read_legacy_storages(mapped: mmap.mmap, storages: dict[str, StorageId]) -> dict[str, np.ndarray]:
    """Read the list of storages and their elements, which begin where the mapped file was left."""
    keys = load_pickle(mapped, {}, refuse_storage)
    if not isinstance(keys, list):
        raise UnpicklingError("it is damaged (no list of storages)")
    buffer = memoryview(mapped)
    position = mapped.tell()
    flats: dict[str, np.ndarray] = {}
    for key in keys:
        if type(key) is not str or key not in storages or key in flats:
            raise UnpicklingError("it is damaged (its list of storages isn't that of its tensors)")
        type_name, _, size, _ = storages[key]
        if buffer[position : position + 8] != struct.pack("<q", size):
            raise UnpicklingError(f"it is damaged or cut off (storage {key[:100]!r} isn't as long as its tensors say)")
        end = position + 8 + storage_bytes(type_name, size)
        flats[key] = decode_storage(buffer[position + 8 : end], type_name, size, "<")
        position = end
    return flats

"""Read and write ``.safetensors`` files: a length, a JSON header, then raw little-endian numbers.

Reading uses the safetensors package to validate the header and every offset, and then maps the file: the NumPy side of
the package offers neither memory mapping nor bfloat16. Writing doesn't use the package, because it writes metadata in
random order, whereas equal weights should give equal bytes, hence an equal SHA-256.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import collections
import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import numpy as np

from vitnp.checkpoints.bfloat16 import bfloat16_to_float32
from vitnp.checkpoints.nested import MAX_TENSORS
from vitnp.errors import CheckpointError
from vitnp.io.write import replacing

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}


_MAX_HEADER_BYTES = 16 * 2**20  # that of a checkpoint takes less than 1 MB; parsed, it takes some twenty times as much
_MAX_DIMENSIONS = 32
_MAX_BYTES = 2**62


class _HeaderEntry(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: list[int]


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors and the metadata of a file.

    Parameters
    ----------
    path : path

    Returns
    -------
    tensors : dict of str to array
        Read-only views of the mapped file; bfloat16 is converted to float32.
    metadata : dict of str to str

    Raises
    ------
    CheckpointError
        If the file can't be read, or isn't a complete safetensors file.

    Examples
    --------
    >>> tensors, metadata = read_safetensors("weights/vitnp_tiny.safetensors")      # doctest: +SKIP
    >>> metadata["heads"]                                                           # doctest: +SKIP
    '3'
    """
    from safetensors import SafetensorError, safe_open

    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # opening it might never end
        raise CheckpointError(f"{path} is a pipe or device: give a file")
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            if _MAX_HEADER_BYTES < length < os.fstat(file.fileno()).st_size:  # the package refuses a longer one
                raise CheckpointError(f"{path} has a header of {length / 1e6:.0f} MB, too long for a checkpoint")
            with safe_open(os.fspath(path), framework="numpy") as validated:
                names = set(validated.keys())
                metadata = validated.metadata() or {}
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        if os.path.isdir(path):
            raise CheckpointError(f"{path} is a folder: give the file in it") from None
        if isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{path} doesn't exist: check the spelling") from None
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        detail = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not a complete safetensors file: {detail}") from None
    data = content[8 + length :]
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds more than {MAX_TENSORS:,} tensors, too many for a checkpoint")
    try:
        header = json.loads(bytes(content[8 : 8 + length]), object_pairs_hook=_unique)
        return {name: _read_tensor(path, name, data, header[name]) for name in sorted(names)}, metadata
    except (LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {str(error)[:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs of a JSON object, in which no name may appear twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        name = next(name for name, count in collections.Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"its header has two entries of the name {name[:100]!r}")
    return table


def _read_tensor(path: str | os.PathLike[str], name: str, data: memoryview, entry: _HeaderEntry) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{path}: the tensor {name[:100]!r} is of type {entry['dtype']}, which vitnp can't read: "
            "convert it to float16 or float32"
        )
    dtype, shape, (start, end) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
    # Without numbers a side can be as long as you like, but NumPy multiplies the others all the same.
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(1, side) for side in shape) * dtype.itemsize > _MAX_BYTES:
        raise ValueError(f"the tensor {name[:100]!r} has an impossible shape")
    flat = np.frombuffer(data[start:end], dtype) if end > start else np.empty(0, dtype)  # frombuffer refuses no bytes
    array = flat.reshape(shape)
    return bfloat16_to_float32(array) if entry["dtype"] == "BF16" else array


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a complete file or nothing; equal tensors and metadata give equal bytes.

    Parameters
    ----------
    path : path
        Replaced if it exists.
    tensors : mapping of str to array
        Of any float, integer or bool type of NumPy that the format has.
    metadata : mapping of str to str

    Raises
    ------
    OutputError
        If the file can't be written; no part of it is left.
    """
    with replacing(path) as file:
        file.writelines(serialized(tensors, metadata))


def serialized(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Generate the bytes of a file in parts: the header, then one tensor at a time.

    Examples
    --------
    >>> len(b"".join(serialized({"a": np.zeros(3, np.float32)}, {})))
    100
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    # The widest types first, as the safetensors package does, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": _NAMES[tensor.dtype.newbyteorder("<")],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data

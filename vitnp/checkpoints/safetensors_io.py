"""Read and write ``.safetensors``: a length, a JSON header, then raw little-endian numbers.

The safetensors package vouches for a file: no offset is used that it hasn't checked. The tensors then are views of the mapped
file, which its NumPy side doesn't offer, nor does it know bfloat16. Writing is done here because the package puts metadata in an
order of chance, and the same weights should give the same bytes, hence the same sha256.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from vitnp.checkpoints.torch_io import bfloat16_to_float32
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


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a file.

    Parameters
    ----------
    path : path

    Returns
    -------
    tensors : dict of str to array
        Read-only views of the mapped file; bfloat16 as float32.
    metadata : dict of str to str

    Raises
    ------
    CheckpointError
        Can't be read, or is no whole safetensors file.

    Examples
    --------
    >>> tensors, metadata = read_safetensors("weights/vitnp_tiny.safetensors")      # doctest: +SKIP
    >>> metadata["heads"]                                                           # doctest: +SKIP
    '3'
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as checked, open(path, "rb") as file:
            names = set(checked.keys())
            metadata = checked.metadata() or {}
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        if os.path.isdir(path):
            raise CheckpointError(f"{path} is a folder; name the file in it") from None
        if isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{path}: there is no such file; check the spelling") from None
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {' '.join(str(error).split())[:200]}") from None
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(bytes(content[8 : 8 + length]))
    data = content[8 + length :]
    return {name: _array(path, name, data, header[name]) for name in sorted(names)}, metadata


def _array(path: str | os.PathLike[str], name: str, data: memoryview, entry: dict) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(
            f"{path}: the tensor {name[:100]!r} is of type {entry['dtype']}, which vitnp can't read; convert it to float16 or float32"
        )
    dtype, (start, end) = np.dtype(_DTYPES[entry["dtype"]]), entry["data_offsets"]
    # frombuffer has no word for nothing.
    array = (np.frombuffer(data[start:end], dtype) if end > start else np.empty(0, dtype)).reshape(entry["shape"])
    return bfloat16_to_float32(array) if entry["dtype"] == "BF16" else array


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a file, whole or not at all; equal tensors and metadata give equal bytes.

    Parameters
    ----------
    path : path
        Replaced when it exists.
    tensors : mapping of str to array
        Any of NumPy's float, integer and bool types.
    metadata : mapping of str to str

    Raises
    ------
    OutputError
        Can't be written; nothing is left behind.
    """
    with replacing(path) as file:
        file.writelines(serialized(tensors, metadata))


def serialized(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, piece by piece: what :func:`write_safetensors` writes.

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

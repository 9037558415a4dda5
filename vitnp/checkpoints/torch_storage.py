"""Storages and tensors as the pickles of torch describe them, rebuilt as NumPy arrays.

A storage is a flat array of one type; a tensor is a shape and strides over a storage. Every number comes from the file
and is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from vitnp.checkpoints.bfloat16 import bfloat16_to_float32
from vitnp.checkpoints.inert import is_inert
from vitnp.checkpoints.pickled_objects import Global, Placeholder, UnpicklingError, usable_items
from vitnp.checkpoints.safe_unpickler import load_pickle

_MAX_DIMENSIONS = 32

# NumPy types of storages, little-endian by default; bfloat16 comes as bits.
_STORAGE_DTYPES = {
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
    # Those of tensors that become placeholders.
    "torch.QInt8Storage": "i1",
    "torch.QUInt8Storage": "u1",
    "torch.QInt32Storage": "<i4",
    "torch.storage.UntypedStorage": "u1",
}


class StorageId(NamedTuple):
    """Reference from a tensor to a storage.

    Attributes
    ----------
    type_name : str
        Type, such as "torch.FloatStorage".
    key : str
        Name of the storage in the file.
    size : int
        Number of elements.
    view : (int, int) or None
        Offset and number of elements, if only a part of the storage is meant.
    """

    type_name: str
    key: str
    size: int
    view: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat array of a file, or None while only the structure of the file is read.

    The unpickler makes no other object of this class, so a file can't pass off an array of its own as a storage.
    """

    flat: np.ndarray | None


def load_torch_pickle(stream: BinaryIO | mmap.mmap, load_storage: Callable[[object], Storage]) -> object:
    """Load a pickle of torch; `load_storage` gets persistent ids, see :func:`parse_storage_id`.

    Raises
    ------
    UnpicklingError
        If the pickle is damaged or asks for any other object than checkpoints need.
    """
    known: dict[str, Callable[..., object]] = {
        "collections.OrderedDict": _rebuild_ordered_dict,
        "collections.defaultdict": lambda factory=None, *items: _rebuild_ordered_dict(*items),
        "torch.Size": _rebuild_size,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": _rebuild_with_attributes,
    }
    for name in _STORAGE_DTYPES:
        known[name] = refuse_storage
    return load_pickle(stream, known, load_storage, is_inert)


def refuse_storage(*_: object) -> Storage:
    """Refuse a storage in a place where a file has none."""
    raise UnpicklingError("it is damaged (a storage where none belongs)")


def parse_storage_id(persistent_id: object) -> StorageId:
    """Check a persistent id, ``("storage", type, key, device, count[, view])``, and return its parts."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
        raise UnpicklingError("it is damaged (a storage of no known form)")
    word, storage_type, key, _, size, *view = persistent_id
    if word != "storage" or not isinstance(storage_type, Global) or storage_type.name not in _STORAGE_DTYPES:
        raise UnpicklingError("it is damaged (a storage of no known type)")
    if type(key) is not str or not _is_count(size):
        raise UnpicklingError("it is damaged (a storage without a name or a size)")
    if not view or view[0] is None:
        return StorageId(storage_type.name, key, size, None)
    _, offset, view_size = view[0]
    if not _is_count(offset) or not _is_count(view_size):
        raise UnpicklingError("it is damaged (a storage view without an offset or a size)")
    return StorageId(storage_type.name, key, size, (offset, view_size))


def storage_bytes(type_name: str, size: int) -> int:
    """Return the number of bytes of a storage."""
    return size * np.dtype(_STORAGE_DTYPES[type_name]).itemsize


def decode_storage(content: memoryview, type_name: str, size: int, byteorder: Literal["<", ">"]) -> np.ndarray:
    """Return the elements of a storage: a view of the bytes, or a copy of bool, bfloat16 and misaligned ones."""
    dtype = np.dtype(_STORAGE_DTYPES[type_name]).newbyteorder(byteorder)
    if len(content) != size * dtype.itemsize:
        raise UnpicklingError("it is damaged or cut off (a storage isn't as long as its tensors say)")
    flat: np.ndarray = np.frombuffer(content, dtype) if size else np.empty(0, dtype)
    if type_name == "torch.BoolStorage":
        flat = flat != 0
    elif type_name == "torch.BFloat16Storage":
        flat = bfloat16_to_float32(flat)
    flat = np.require(flat, flat.dtype.newbyteorder("="), ["A"])
    flat.flags.writeable = False
    return flat


def _rebuild_tensor(
    storage: object,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: object = False,
    backward_hooks: object = None,
    bits: object = None,
) -> np.ndarray | None:
    """Return a strided view of a storage, after checking that every element of it lies inside."""
    if isinstance(bits, dict) and any(bits.values()):  # conjugated or negated when it is read
        raise UnpicklingError("a tensor of it is a lazy conjugate or negative: save it after tensor.resolve_neg()")
    if not isinstance(storage, Storage):  # NumPy would take an array too, but the bounds of a strided one are unknown
        raise UnpicklingError("it is damaged (a tensor without a storage)")
    shape, strides = _rebuild_size(shape), _rebuild_size(strides)
    if len(shape) != len(strides) or not _is_count(offset):
        raise UnpicklingError("it is damaged (a tensor of impossible shape)")
    if storage.flat is None:
        return None
    if math.prod(shape) == 0:
        return np.empty(shape, storage.flat.dtype)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if last >= len(storage.flat):
        raise UnpicklingError("it is damaged (a tensor reaches beyond its storage)")
    itemsize = storage.flat.itemsize
    byte_strides = [stride * itemsize if length > 1 else 0 for length, stride in zip(shape, strides)]
    return np.lib.stride_tricks.as_strided(storage.flat[offset:], shape, byte_strides, writeable=False)


def _rebuild_with_attributes(function: object, tensor_type: object, arguments: Any, state: object) -> object:
    """Return a tensor that has attributes or a type of its own, without them."""
    if not isinstance(function, Global) or type(arguments) is not tuple or not 4 <= len(arguments) <= 7:
        raise UnpicklingError("it is damaged (a tensor of no known form)")
    if function.build is not _rebuild_tensor:
        return Placeholder(function.name)
    return _rebuild_tensor(*arguments)


def _rebuild_size(sizes: Any = ()) -> tuple[int, ...]:
    if type(sizes) not in (tuple, list) or len(sizes) > _MAX_DIMENSIONS or not all(map(_is_count, sizes)):
        raise UnpicklingError("it is damaged (a tensor of impossible shape)")
    return tuple(sizes)


def _rebuild_ordered_dict(items: Any = None) -> dict[Any, object]:
    """Return a dict, which pickles of Python 3 fill later; those of Python 2 pass a list of pairs.

    The list is emptied, so that a hostile file can't multiply it by naming it many times.
    """
    if items is None:
        return {}
    if type(items) is not list:
        raise UnpicklingError("it is damaged (a dict that isn't made of a list)")
    pairs = items.copy()
    items.clear()
    return dict(usable_items((key, value) for key, value in pairs))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62

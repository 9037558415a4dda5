"""Names of the Python objects that training checkpoints hold beside their weights, and that vitnp needs no more of.

Paths, devices, options, NumPy arrays, states of random generators: the unpickler puts a placeholder in the place of
each and throws away what the file says about it. Nothing under these names is ever imported or called. Any other name
is refused, which tells people that their file would run code elsewhere.
"""

from __future__ import annotations

_BUILTINS = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object", "range"),
    *("set", "slice", "str", "tuple", "unicode", "xrange", "Ellipsis", "NotImplemented"),
)
_PATHS = ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
_MODULES: dict[str, tuple[str, ...]] = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,  # pickle protocols 0 to 2, which torch uses by default
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "typing": ("Any", "Dict", "List", "Union"),
    "collections": ("ChainMap", "Counter", "UserDict", "deque"),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # Python 3.13
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
    "_codecs": ("encode",),  # how protocol 2 writes bytes
    "copyreg": ("_reconstructor",),  # how protocols 0 and 1 write objects
    "copy_reg": ("_reconstructor",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy": (
        *("dtype", "ndarray", "bool", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "str_", "bytes_", "complex64", "complex128"),
    ),
    "torch": (
        *("Tensor", "device", "bool", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64", "per_tensor_affine", "per_channel_affine"),
    ),
    "torch._utils": (
        *("torch.channels_last", "torch.contiguous_format", "torch.preserve_format"),
        # Tensors that no weight of a ViT is: quantized, sparse, of types without a storage class, without data.
        *("_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor", "_rebuild_qtensor", "_rebuild_sparse_tensor"),
        "_rebuild_tensor_v3",
    ),
    "torch.nn.parameter": ("Buffer", "Parameter"),
    "torch.serialization": ("_get_layout",),
    "torch.storage": ("UntypedStorage",),
}
_NAMES = frozenset(f"{module}.{name}" for module, names in _MODULES.items() for name in names)

# Packages whose configuration objects and counters are saved by the training code that uses them.
_PACKAGES = (
    *("addict.", "easydict.", "lightning.", "lightning_fabric.", "ml_collections.", "mmcv.", "mmengine."),
    *("numpy.random.", "omegaconf.", "pytorch_lightning.", "yacs."),
)


def is_inert(name: str) -> bool:
    """Return whether a placeholder stands for the object of this name, ``"module.name"``.

    Examples
    --------
    >>> is_inert("pathlib.PosixPath"), is_inert("os.system")
    (True, False)
    """
    return name in _NAMES or name.startswith(_PACKAGES)

"""The file of one photograph's features for other programs: .npz or .safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from vitnp import __version__
from vitnp.checkpoints.safetensors_io import write_safetensors
from vitnp.features.record import FeatureRecord
from vitnp.io import stamp as stamp_
from vitnp.io import write


def write_file(path: Path, features: FeatureRecord, metadata: Mapping[str, object]) -> None:
    """Write the features of one photograph.

    Parameters
    ----------
    path : Path
        Path with the suffix ``.npz`` or ``.safetensors``.
    features : FeatureRecord
        Written as "keys" (rows, columns, D), "attention" (rows, columns) and "cls" (D,).
    metadata : mapping
        Further metadata, besides the sizes of the photograph, of the network's input and of the grid.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    arrays = {
        "keys": features.keys.reshape(*features.grid, -1),
        "attention": features.attention.reshape(features.grid),
        "cls": features.cls,
    }
    metadata = {
        **metadata,
        "grid": features.grid,
        "pixels": features.pixels,
        "photograph_size": features.size,
        "capped": features.capped,
    }
    if path.suffix == ".npz":
        # Keys are close to noise: compression takes long and saves almost nothing.
        write.write_npz(path, arrays, metadata, compressed=False)
        return
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    write_safetensors(path, arrays, {"Software": f"vitnp {__version__}", **texts})


def stamp(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """Return the entries that begin with "vitnp:" in the metadata of a file of features, or of a picture of them.

    Returns
    -------
    dict or None
        None if there is no such file, or vitnp did not write it; see :func:`vitnp.io.stamp.stamp`.
    """
    if not os.fspath(path).endswith(".safetensors"):
        return stamp_.stamp(path)
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        return None
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    if not metadata.get("Software", "").startswith("vitnp "):
        return None
    return {name: value for name, value in metadata.items() if name.startswith("vitnp:")}

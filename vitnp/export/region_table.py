"""The table of regions, and the file that it is written to: npz for NumPy, or Parquet for everything else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitnp.errors import UsageError
from vitnp.io import write
from vitnp.io.path_text import valid_unicode
from vitnp.io.stamp import canonical_json, foreign_error, refuse_foreign, with_software

# Formats by the ending of the file name.
TABLE_FORMATS = ("npz", "parquet")


@dataclasses.dataclass(frozen=True, eq=False)
class RegionTable:
    """Features of regions, one row each.

    Attributes
    ----------
    photograph : sequence of str
        Path, as it was given.
    fingerprint : sequence of str
        Hash of the file.
    region : (R,) int32
        Number of the region in its photograph; where masks are given, its value in the picture.
    label : (R,) int32
        Class, from 1; 0 if there are no classes.
    area : (R,) int64
        Pixels of the photograph.
    box : (R, 4) int32
        x, y, width and height in pixels of the photograph.
    confidence : (R,) float32
        0 to 1; NaN for masks that were given.
    cls : (R, D) float32
        Masked CLS: the CLS token with attention restricted to the region.
    feature : (R, D) float32
        Mean of the features of the region's patches.
    facet : str
        Which feature this is, and the name of its column: "key", "query", "value" or "token".

    Examples
    --------
    >>> table = vitnp.region_features("PHOTOS/")                 # doctest: +SKIP
    >>> table.cls.shape, table.feature.shape                     # doctest: +SKIP
    ((137, 192), (137, 192))
    """

    photograph: Sequence[str]
    fingerprint: Sequence[str]
    region: np.ndarray
    label: np.ndarray
    area: np.ndarray
    box: np.ndarray
    confidence: np.ndarray
    cls: np.ndarray
    feature: np.ndarray
    facet: str = "key"

    def __len__(self) -> int:
        return len(self.region)

    @staticmethod
    def concatenated(parts: Sequence[RegionTable], width: int, facet: str) -> RegionTable:
        """Return the rows of several tables as one; there may be none of them, `width` is D."""
        nothing = np.zeros(0, np.int32)
        empty = RegionTable(
            photograph=[],
            fingerprint=[],
            region=nothing,
            label=nothing,
            area=nothing.astype(np.int64),
            box=np.zeros((0, 4), np.int32),
            confidence=np.zeros(0, np.float32),
            cls=np.zeros((0, width), np.float32),
            feature=np.zeros((0, width), np.float32),
            facet=facet,
        )
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(RegionTable):
            values = [getattr(part, field.name) for part in (empty, *parts)]
            if field.name == "facet":
                columns[field.name] = facet
            elif isinstance(values[0], list):
                columns[field.name] = [text for texts in values for text in texts]
            else:
                columns[field.name] = np.concatenate(values)
        return RegionTable(**columns)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns by name, as they are in files; texts are arrays of ``str``."""
        return {
            "photograph": np.array(self.photograph, dtype=str),
            "fingerprint": np.array(self.fingerprint, dtype=str),
            "region": self.region,
            "label": self.label,
            "area": self.area,
            "box": self.box,
            "confidence": self.confidence,
            "cls": self.cls,
            self.facet: self.feature,
        }

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the table, in full or not at all; the ending of the name is the format, ``.npz`` or ``.parquet``.

        Parameters
        ----------
        path : path
            In an npz file the columns are arrays; in a Parquet file ``box``, ``cls`` and the mean feature are lists of
            fixed length.
        metadata : mapping, optional
            What JSON can represent; an array "metadata" in npz, and the key "vitnp" of the schema in Parquet.

        Raises
        ------
        UsageError
            If the ending is another one, or pyarrow is missing for Parquet.
        OutputError
            If it cannot be written.
        """
        form = os.path.splitext(os.fspath(path))[1][1:].lower()
        if form not in TABLE_FORMATS:
            raise UsageError(f"the table of regions must be an .npz or .parquet file, got {os.fspath(path)}")
        if form == "npz":
            write.write_npz(path, self.columns(), metadata, compressed=False)
        else:
            self._save_parquet(path, metadata or {})

    def _save_parquet(self, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
        pyarrow = require_pyarrow()
        from pyarrow import parquet

        arrays = {}
        for name, column in self.columns().items():
            if column.ndim == 2:
                values = pyarrow.array(np.ascontiguousarray(column).ravel())
                arrays[name] = pyarrow.FixedSizeListArray.from_arrays(values, column.shape[1])
            elif column.dtype.kind == "U":
                arrays[name] = pyarrow.array([valid_unicode(text) for text in column.tolist()], pyarrow.string())
            else:
                arrays[name] = pyarrow.array(column)
        facts = {key: str(value) for key, value in with_software(None).items()}
        table = pyarrow.table(arrays).replace_schema_metadata({**facts, "vitnp": canonical_json(metadata)})
        with write.replacing(path) as file:
            parquet.write_table(table, file)


def check_place(path: str | os.PathLike[str]) -> None:
    """Check that writing a table destroys no file of another program.

    Raises
    ------
    OutputError
        If there is such a file.
    UsageError
        If pyarrow is missing for Parquet.
    """
    if os.path.splitext(os.fspath(path))[1].lower() != ".parquet":
        refuse_foreign([path])
        return
    pyarrow = require_pyarrow()
    from pyarrow import parquet

    if not os.path.lexists(path):
        return
    try:
        software = (parquet.read_schema(path).metadata or {}).get(b"Software", b"")
    except (OSError, pyarrow.ArrowException):
        software = b""
    if not software.startswith(b"vitnp "):
        raise foreign_error(path)


def require_pyarrow() -> Any:
    """Return the package pyarrow.

    Raises
    ------
    UsageError
        If it is not installed: which extra installs it.
    """
    try:
        import pyarrow
    except ImportError:
        raise UsageError("Parquet needs the package pyarrow; `pip install 'vitnp[tables]'` installs it") from None
    return pyarrow

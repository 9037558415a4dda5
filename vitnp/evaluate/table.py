"""Tables, printed as aligned text or written as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from typing import TypeAlias

Cell: TypeAlias = "str | int | float | None"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text, counts and scores; None is an empty cell.

    Attributes
    ----------
    columns : tuple of str
        Column titles.
    rows : tuple of tuple
        Cells, as many per row as there are columns.

    Examples
    --------
    >>> print(Table(("score", "mean", "seed 0"), (("photographs", 2, 2), ("IoU", 0.5, 0.5))).text())
    score          mean  seed 0
    photographs       2       2
    IoU          0.5000  0.5000
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def text(self) -> str:
        """Return aligned lines: columns of text to the left, others to the right; titles from three columns on."""
        titles = [list(self.columns)] if len(self.columns) > 2 else []
        cells = [*titles, *([_format(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        is_text = [all(isinstance(row[index], str) for row in self.rows) for index in range(len(self.columns))]
        lines = []
        for row in cells:
            padded = (c.ljust(width) if left else c.rjust(width) for c, width, left in zip(row, widths, is_text))
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)

    def csv(self) -> str:
        """Return CSV with titles: scores in full precision, empty cells for None and NaN."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if _is_missing(cell) else cell for cell in row] for row in self.rows])
        return file.getvalue()


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _format(cell: Cell) -> str:
    if _is_missing(cell):
        return "-"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)

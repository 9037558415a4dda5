"""Tables: aligned text for people, CSV for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import math


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells: text, whole numbers, scores and None.

    Examples
    --------
    >>> print(Table(("score", "mean", "seed 0"), (("photographs", 2, 2), ("IoU", 0.5, 0.5))).text())
    score          mean  seed 0
    photographs       2       2
    IoU          0.5000  0.5000
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def text(self) -> str:
        """Columns aligned, text to the left and numbers to the right; two columns explain themselves without a head."""
        head = [self.columns] if len(self.columns) > 2 else []
        cells = [*head, *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        texts = [all(isinstance(row[index], str) for row in self.rows) for index in range(len(self.columns))]
        lines = (
            "  ".join(cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(row, widths, texts))
            for row in cells
        )
        return "\n".join(line.rstrip() for line in lines)

    def csv(self) -> str:
        """With a head; scores in full precision, nothing for None and NaN."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if _missing(cell) else cell for cell in row] for row in self.rows])
        return file.getvalue()


def _missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _shown(cell: object) -> str:
    if _missing(cell):
        return "-"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)

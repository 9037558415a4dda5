"""Rows and columns of the patch grid that the position embeddings of a checkpoint were trained on.

A checkpoint has one list of position embeddings, and its length alone doesn't always say what they are: 225 may be
15 x 15 patches, or CLS and 14 x 16 patches. So a grid that is declared counts first; without one, a square is taken
where that leaves no doubt.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from vitnp.errors import CheckpointError


class DeclaredGrid(NamedTuple):
    """Rows and columns of patches, and where they come from ("config.json beside it")."""

    rows: int
    columns: int
    source: str


def parse_grid(text: str) -> tuple[int, int]:
    """Return the rows and columns of a grid such as "14x16".

    Raises
    ------
    ValueError
        If it isn't two whole numbers.

    Examples
    --------
    >>> parse_grid("14x16")
    (14, 16)
    """
    rows, columns = text.lower().split("x")
    return int(rows), int(columns)


def trained_grid(
    n_positions: int, declared: DeclaredGrid | None = None, class_position: bool | None = None
) -> tuple[int, int]:
    """Return the rows and columns of the trained grid.

    Parameters
    ----------
    n_positions : int
        Number of position embeddings.
    declared : DeclaredGrid, optional
    class_position : bool, optional
        Whether the first position embedding is that of CLS; None if that isn't known.

    Raises
    ------
    CheckpointError
        If the declared grid doesn't fit, there is no square grid, or there is a doubt. The message names the option
        that decides.

    Examples
    --------
    >>> trained_grid(1 + 14 * 14)
    (14, 14)
    >>> trained_grid(1 + 14 * 16, DeclaredGrid(14, 16, "the option grid"))
    (14, 16)
    """
    # Numbers of patches that are possible.
    counts = (n_positions - 1, n_positions) if class_position is None else (n_positions - bool(class_position),)
    if declared is not None:
        rows, columns, source = declared
        if min(rows, columns) >= 1 and rows * columns in counts:
            return rows, columns
        raise CheckpointError(
            f"{source} says a grid of {rows} x {columns} patches, but tensor 'pos_embed' has {n_positions} positions: "
            "give the right one with --grid ROWSxCOLUMNS"
        )
    squares = [count for count in counts if count >= 1 and math.isqrt(count) ** 2 == count]
    if not squares:
        raise CheckpointError(
            f"tensor 'pos_embed' has {n_positions} positions, which are no square grid of patches: "
            "give --grid ROWSxCOLUMNS"
        )
    side = math.isqrt(squares[0])
    if class_position is None and squares[0] == n_positions > 1:
        # 1 + (side - 1)(side + 1) = side^2
        raise CheckpointError(
            f"tensor 'pos_embed' has {n_positions} positions, which may be {side} x {side} patches, or CLS and "
            f"{side - 1} x {side + 1} patches: give --grid {side}x{side} or --grid ROWSxCOLUMNS"
        )
    return side, side

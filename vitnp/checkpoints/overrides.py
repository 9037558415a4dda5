"""What users say about a checkpoint."""

from __future__ import annotations

import dataclasses

from vitnp import options


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Choices of the user that take precedence over what the checkpoint says; None leaves them to the checkpoint.

    Attributes
    ----------
    heads : int, optional
        Number of attention heads.
    pos_embed : {"offset", "exact", "antialias"}, optional
        Interpolation of position embeddings.
    normalization : {"imagenet", "half", "sat493m"}, optional
        Mean and standard deviation of the input.
    grid : str or (int, int), optional
        Rows and columns of patches that the position embeddings were trained on, such as "14x16" or (14, 16).

    Raises
    ------
    UsageError
        If one of them isn't allowed.
    """

    heads: int | None = None
    pos_embed: str | None = None
    normalization: str | None = None
    grid: str | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.grid, (tuple, list)):
            object.__setattr__(self, "grid", "x".join(map(str, self.grid)))
        for field in dataclasses.fields(self):
            options.check(field.name, getattr(self, field.name))

"""One option: its name, type, allowed values and help text, from which checks and command lines are made."""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Mapping
from typing import Any

from vitnp.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of the Python API, of the command line, or of both.

    Attributes
    ----------
    name : str
        Name of the parameter in Python, and of the attribute that the command line sets.
    help : str
        Line for ``--help``, of at most 53 characters, with the default in parentheses.
    type : type
        ``int``, ``float``, ``str``, ``Path`` or ``bool`` (a switch).
    default : object
        Value if the option is not given. None is allowed if it is the default.
    choices : tuple of str
        Allowed words; empty for any.
    minimum, maximum : float, optional
        Range of a number, including both ends.
    words : tuple of str
        Words allowed instead of a number, such as "all".
    metavar : str, optional
        Placeholder for the value in ``--help``.
    const : object, optional
        Value if the option is given without one; if None, it needs a value.
    flag : str, optional
        Name on the command line; by default ``--name`` with hyphens.
    old_flags : tuple of str
        Former names on the command line: accepted, but not shown in ``--help``.
    old_values : mapping of str to str
        Former words on the command line and what replaced them: accepted, but not shown.
    pattern : str
        Regular expression for the whole of a text; empty for any.
    example : str
        Description of the texts that the pattern fits, with an example.
    """

    name: str
    help: str
    type: type = str
    default: object = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    words: tuple[str, ...] = ()
    metavar: str | None = None
    const: object = None
    flag: str = ""
    old_flags: tuple[str, ...] = ()
    old_values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pattern: str = ""
    example: str = ""

    @property
    def long_flag(self) -> str:
        """Name on the command line, such as ``--short-side``."""
        return self.flag or "--" + self.name.replace("_", "-")

    @property
    def allowed(self) -> str:
        """Allowed values in words.

        Examples
        --------
        >>> Option("seed", "seed of k-means", int, minimum=0).allowed
        'a whole number of at least 0'
        """
        if self.choices:
            return f"one of {enumerate_words(self.choices)}"
        kind = self.example or {int: "a whole number", float: "a number"}.get(self.type, "text")
        if self.minimum is not None and self.maximum is not None:
            kind += f" from {self.minimum:g} to {self.maximum:.10g}"
        elif self.minimum is not None:
            kind += f" of at least {self.minimum:g}"
        return " or ".join([kind, *(f'"{word}"' for word in self.words)])

    def accepts(self, value: object) -> bool:
        """Tell whether a value is allowed."""
        if value is None:
            return self.default is None
        if isinstance(value, str) and value in self.words:
            return True
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if self.pattern:
            return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None
        if self.type in (int, float):
            number = _python_number(value)
            if number is None or (self.type is int and not isinstance(number, int)):
                return False
            low = -float("inf") if self.minimum is None else self.minimum
            high = float("inf") if self.maximum is None else self.maximum
            return low <= number <= high and abs(number) != float("inf")
        return True

    def check(self, value: Any) -> Any:
        """Return the value if it is allowed; a number as Python's own ``int`` or ``float``.

        Raises
        ------
        UsageError
            If the value is not allowed.

        Examples
        --------
        >>> Option("facet", "features of patches", choices=("key", "query", "value")).check("keys")
        Traceback (most recent call last):
        vitnp.errors.UsageError: facet must be one of key, query or value, got 'keys'
        """
        if not self.accepts(value):
            raise UsageError(f"{self.name} must be {self.allowed}, got {value!r}")
        number = _python_number(value) if self.type in (int, float) else None
        return value if number is None else self.type(number)


def _python_number(value: object) -> int | float | None:
    """Return a number of Python or NumPy as ``int`` or ``float``, None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else None


def enumerate_words(words: tuple[str, ...] | list[str]) -> str:
    """Join words for a sentence.

    Examples
    --------
    >>> enumerate_words(("npz", "safetensors", "csv"))
    'npz, safetensors or csv'
    """
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

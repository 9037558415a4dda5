"""A griffe extension: show Sphinx roles in docstrings, such as ``:func:`vitnp.load_vit```, as plain code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Replace the roles of every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace the roles in the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)

"""A property that is computed once for each object."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functools import cached_property as cached_property
else:

    class cached_property(functools.cached_property):
        """The property of :mod:`functools`, without the lock that all its instances share before Python 3.12.

        Photographs in several threads would wait for each other, and a forked child for a thread that it lacks. Two
        threads that ask at the same moment both compute the same value.
        """

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = instance.__dict__[self.attrname] = self.func(instance)
            return value

"""The numerical operations beneath vitnp: a ladder of siblings with one signature each.

``reference`` defines every operation in plain NumPy. It is the specification, the oracle of the tests and the fallback
everywhere. Whoever needs an operation asks :func:`for_device` and never learns which sibling answered.
"""

from __future__ import annotations

from types import ModuleType


def for_device(device: str = "cpu") -> ModuleType:
    """The module that holds the operations for a device.

    Parameters
    ----------
    device : {"cpu"}
        Where the arrays live.

    Returns
    -------
    module
        Has the names of :mod:`vitnp.kernels.reference`.

    Raises
    ------
    ValueError
        For a device that has no kernels.

    Examples
    --------
    >>> for_device("cpu").__name__.rpartition(".")[2]
    'reference'
    """
    if device != "cpu":
        raise ValueError(f"there are no kernels for the device {device!r}; this version has: cpu")
    from vitnp.kernels import reference

    return reference

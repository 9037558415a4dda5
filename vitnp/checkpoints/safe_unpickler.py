"""An unpickler that runs no code from the file.

The unpickler of Python imports and calls what a file names. This one interprets the same instructions, decoded by
:mod:`pickletools`, but knows only the few names that checkpoints need. Each stands for a function of vitnp that builds
plain data, or is put aside as a :class:`Placeholder`; any other name is refused. No class that the file names is
instantiated, and no attribute is set.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

from vitnp.checkpoints.pickled_objects import (
    MAX_INTEGER_KEY,
    BoundedStream,
    Global,
    Placeholder,
    UnpicklingError,
    usable_items,
)

# Bounds the memory that a small hostile file can claim. Training checkpoints have some 10,000 instructions, the largest
# 400,000.
_MAX_OPCODES = 1_000_000
MAX_PICKLE_BYTES = 64 * 2**20  # the pickle of a training checkpoint takes less than 1 MB

_PUSH_ARGUMENT = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_PUSH_NEW: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_IGNORE = frozenset(("PROTO", "FRAME"))
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(struct.error, Warning),  # a warning about an invalid escape, where the caller turns warnings into errors
)
_MAX_ARGUMENTS = 16


def load_pickle(
    stream: BinaryIO | mmap.mmap,
    known: Mapping[str, Callable[..., object]],
    load_persistent: Callable[[Any], object],
    is_inert: Callable[[str], bool] = lambda name: False,
) -> object:
    r"""Interpret one pickle of a stream and leave the stream at the byte after it.

    Parameters
    ----------
    stream : binary file or mmap
        Its ``read`` and ``readline`` must never return more than the file holds.
    known : mapping of str to callable
        For each ``"module.name"`` that the file may ask for, the function to call in its place. Its arguments come from
        the file, so it must check them.
    load_persistent : callable
        Function that turns a persistent id, which comes from the file too, into an object.
    is_inert : callable
        Whether a placeholder stands for objects of this name; arguments, items and states that the file gives them are
        dropped.

    Returns
    -------
    object
        Dicts, lists, tuples, scalars, strings, :class:`Placeholder`, and results of `known` and `load_persistent`. Sets
        become lists.

    Raises
    ------
    UnpicklingError
        If the pickle is damaged or not allowed. Nothing else is raised, whatever the bytes.

    Examples
    --------
    >>> import io, pickle
    >>> load_pickle(io.BytesIO(pickle.dumps({"epoch": [3, 0.5]})), {}, lambda key: None)
    {'epoch': [3, 0.5]}
    >>> try:
    ...     load_pickle(io.BytesIO(b"cos\nsystem\n(S'echo'\ntR."), {}, lambda key: None)
    ... except UnpicklingError as error:
    ...     print(str(error).partition(" (")[0])
    it asks for the Python object 'os.system': a checkpoint must never run code
    """
    try:
        return _Machine(known, load_persistent, is_inert).run(BoundedStream(stream, MAX_PICKLE_BYTES))
    except UnpicklingError:
        raise
    except MemoryError:
        raise UnpicklingError("its pickle claims more memory than there is") from None
    except _DAMAGED as error:
        raise UnpicklingError(f"its pickle is damaged ({type(error).__name__})") from None


class _Machine:
    """The stack machine of pickle: a stack, the stacks below the open marks, and a memo.

    The method ``_name`` executes the instruction ``NAME``; its argument is that of the instruction.
    """

    def __init__(
        self,
        known: Mapping[str, Callable[..., object]],
        load_persistent: Callable[[Any], object],
        is_inert: Callable[[str], bool],
    ):
        self.known, self.load_persistent, self.is_inert = known, load_persistent, is_inert
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[object, Any] = {}

    def run(self, stream: BoundedStream) -> object:
        opcodes = pickletools.genops(cast(BinaryIO, stream))  # needs read, readline and tell only
        for count, (opcode, argument, _) in enumerate(opcodes):
            if count >= _MAX_OPCODES:
                raise UnpicklingError(
                    f"its pickle has more than {_MAX_OPCODES:,} instructions, too many for a checkpoint"
                )
            name = opcode.name
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _PUSH_NEW:
                self.stack.append(_PUSH_NEW[name]())
            elif name in _PUT:
                self._memoize(len(self.memo) if name == "MEMOIZE" else cast(int, argument))
            elif name in _GET:
                self.stack.append(self.memo[argument])
            elif name in _TUPLES:
                size = _TUPLES[name]
                if len(self.stack) < size:
                    raise UnpicklingError("its pickle is damaged (a tuple of more items than there are)")
                self.stack[-size:] = [tuple(self.stack[-size:])]
            elif name == "STOP":
                return self._take()
            elif name not in _IGNORE:
                handler = getattr(self, f"_{name.lower()}", None)
                if handler is None:
                    raise UnpicklingError(f"its pickle uses {name}, which no checkpoint needs")
                handler(argument)
        raise UnpicklingError("its pickle has no end")

    def _take(self) -> Any:
        return self.stack.pop()

    def _memoize(self, key: int) -> None:
        if not 0 <= key < MAX_INTEGER_KEY:
            raise UnpicklingError("its pickle is damaged (a memo of impossible number)")
        self.memo[key] = self.stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self, _: object) -> None:
        if self.stack:
            self._take()
        else:  # above the mark is nothing, so the mark itself is removed
            self._pop_to_mark()

    def _pop_mark(self, _: object) -> None:
        self._pop_to_mark()

    def _dup(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    # ---- containers

    def _list(self, _: object) -> None:
        items = self._pop_to_mark()
        self.stack.append(items)

    def _tuple(self, _: object) -> None:
        items = self._pop_to_mark()
        self.stack.append(tuple(items))

    _frozenset = _list

    def _dict(self, _: object) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._fill(items)

    def _setitem(self, _: object) -> None:
        value, key = self._take(), self._take()
        self._fill([key, value])

    def _setitems(self, _: object) -> None:
        self._fill(self._pop_to_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Placeholder:
            return
        if type(target) is not dict or len(items) % 2:
            raise UnpicklingError("its pickle is damaged (items for an object that isn't a dict)")
        target.update(usable_items(zip(items[::2], items[1::2])))

    def _append(self, _: object) -> None:
        self._extend([self._take()])

    def _appends(self, _: object) -> None:
        self._extend(self._pop_to_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is Placeholder:
            return
        if type(self.stack[-1]) is not list:
            raise UnpicklingError("its pickle is damaged (items for an object that isn't a list)")
        self.stack[-1].extend(items)

    # ---- names and calls

    def _global(self, argument: str) -> None:
        self.stack.append(self._find(*argument.split(" ", 1)))

    def _stack_global(self, _: object) -> None:
        name, module = self._take(), self._take()
        if type(name) is not str or type(module) is not str:
            raise UnpicklingError("its pickle is damaged (a name that isn't a string)")
        self.stack.append(self._find(module, name))

    def _find(self, module: str, name: str) -> Global:
        path = f"{module}.{name}"
        if path not in self.known and not self.is_inert(path):
            raise UnpicklingError(
                f"it asks for the Python object {path[:100]!r}: a checkpoint must never run code "
                "(if it is your own, save the state dict alone: torch.save(model.state_dict(), file))"
            )
        return Global(path, self.known.get(path))

    def _call(self, target: object, arguments: object) -> None:
        if not isinstance(target, Global) or type(arguments) is not tuple:
            raise UnpicklingError("its pickle is damaged (a call of an object that isn't a function)")
        if target.build is None:
            self.stack.append(Placeholder(target.name))
            return
        if len(arguments) > _MAX_ARGUMENTS:
            raise UnpicklingError("its pickle is damaged (a call with too many arguments)")
        self.stack.append(target.build(*arguments))

    def _reduce(self, _: object) -> None:
        arguments, target = self._take(), self._take()
        self._call(target, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: object) -> None:
        keywords, arguments, target = self._take(), self._take(), self._take()
        if keywords and not (isinstance(target, Global) and target.build is None):
            raise UnpicklingError("its pickle is damaged (a call with keyword arguments)")
        self._call(target, arguments)

    def _inst(self, argument: str) -> None:
        target = self._find(*argument.split(" ", 1))
        self._call(target, tuple(self._pop_to_mark()))

    def _obj(self, _: object) -> None:
        target, *arguments = self._pop_to_mark()
        self._call(target, tuple(arguments))

    def _build(self, _: object) -> None:
        self._take()  # the state is ignored: options of a training run, version numbers of a state dict
        if not isinstance(self.stack[-1], (dict, Placeholder)):
            raise UnpicklingError("its pickle is damaged (a state for an object that has none)")

    def _binpersid(self, _: object) -> None:
        self.stack.append(self.load_persistent(self._take()))

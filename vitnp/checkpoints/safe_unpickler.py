"""A pickle interpreter that runs nothing: data comes out, whatever a hostile file asks for.

Python's own unpickler imports and calls what a file names. This one reads the same instructions (:mod:`pickletools`
decodes them) but keeps a table of the few names a checkpoint needs, each with a function of ours that builds plain data;
any other name is refused. No class of the file is ever constructed, no attribute is ever set.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

# Training checkpoints take a few ten thousand, the largest some 400,000. Bounds the memory that a small hostile file can claim.
MAX_OPCODES = 1_000_000

_PUSH_ARGUMENT = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
    + ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
    + ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
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
_NOTHING = frozenset(("PROTO", "FRAME"))
_REMEMBER = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_RECALL = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(struct.error, Warning),  # a warning where the caller turns them into errors: of a senseless escape in a string
)
_MAX_ARGUMENTS = 16
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


class PickleRefused(ValueError):
    """A pickle that is damaged or asks for what a checkpoint never needs; the message is half a sentence."""


class Inert:
    """Stands for an object that a file names and that is never constructed."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not constructed>"


class Named:
    """A name that the file took from the table, with our function behind it."""

    __slots__ = ("build", "name")

    def __init__(self, name: str, build: Callable[..., object]):
        self.name, self.build = name, build


def load_pickle(
    stream: BinaryIO, names: Mapping[str, Callable[..., object]], persistent: Callable[[Any], object]
) -> object:
    """Interpret one pickle from a stream, which is left just behind it.

    Parameters
    ----------
    stream : binary file or mmap
        With ``read`` and ``readline`` that never give more than the file holds.
    names : mapping of str to callable
        ``"module.name"`` that the file may ask for: our function that takes the arguments of the call. It gets data
        of the file, so it must check every one.
    persistent : callable
        Turns a persistent id (data of the file as well) into an object.

    Returns
    -------
    object
        Dicts, lists, tuples, scalars, strings, :class:`Inert`, and what ``names`` and ``persistent`` made. Sets
        come as lists.

    Raises
    ------
    PickleRefused
        Damaged, or not allowed. Nothing else is raised, whatever the bytes.

    Examples
    --------
    >>> import io, pickle
    >>> load_pickle(io.BytesIO(pickle.dumps({"epoch": [3, 0.5]})), {}, lambda key: None)
    {'epoch': [3, 0.5]}
    >>> load_pickle(io.BytesIO(b"cos\\nsystem\\n(S'echo'\\ntR."), {}, lambda key: None)
    Traceback (most recent call last):
    vitnp.checkpoints.safe_unpickler.PickleRefused: it asks for the Python object 'os.system': a checkpoint must never run code
    """
    try:
        return _Machine(names, persistent).run(stream)
    except PickleRefused:
        raise
    except MemoryError:
        raise PickleRefused("its pickle claims more memory than there is") from None
    except _DAMAGED as error:  # many ways for bytes to be wrong; all mean the same to the reader
        raise PickleRefused(f"its pickle is damaged ({type(error).__name__})") from None


class _Machine:
    """The pickle stack machine: a stack, the stacks below the open marks, a memo."""

    def __init__(self, names: Mapping[str, Callable[..., object]], persistent: Callable[[Any], object]):
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> object:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise PickleRefused(f"its pickle has more than {MAX_OPCODES:,} instructions, too many for a checkpoint")
            name = opcode.name
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _PUSH_NEW:
                self.stack.append(_PUSH_NEW[name]())
            elif name in _REMEMBER:
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
            elif name in _RECALL:
                self.stack.append(self.memo[argument])
            elif name in _TUPLES:
                size = _TUPLES[name]
                if len(self.stack) < size:
                    raise PickleRefused("its pickle is damaged (a tuple of more than there is)")
                self.stack[-size:] = [tuple(self.stack[-size:])]
            elif name == "STOP":
                return self._take()
            elif name not in _NOTHING:
                handler = getattr(self, f"_{name.lower()}", None)
                if handler is None:
                    raise PickleRefused(f"its pickle uses {name}, which no checkpoint needs")
                handler(argument)
        raise PickleRefused("its pickle has no end")

    def _take(self) -> Any:
        return self.stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self, _: object) -> None:
        if self.stack:
            self._take()
        else:  # nothing above the mark: the mark itself goes
            self._pop_to_mark()

    def _pop_mark(self, _: object) -> None:
        self._pop_to_mark()

    def _dup(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    # Containers

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
        if type(target) is not dict or len(items) % 2:
            raise PickleRefused("its pickle is damaged (items for what is no dict)")
        for key, value in zip(items[::2], items[1::2]):
            target[check_key(key)] = value

    def _append(self, _: object) -> None:
        self._extend([self._take()])

    def _appends(self, _: object) -> None:
        self._extend(self._pop_to_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PickleRefused("its pickle is damaged (items for what is no list)")
        self.stack[-1].extend(items)

    # Names and calls

    def _global(self, argument: str) -> None:
        self.stack.append(self._find(*argument.split(" ", 1)))

    def _stack_global(self, _: object) -> None:
        name, module = self._take(), self._take()
        if type(name) is not str or type(module) is not str:
            raise PickleRefused("its pickle is damaged (a name that is no string)")
        self.stack.append(self._find(module, name))

    def _find(self, module: str, name: str) -> Named:
        path = f"{module}.{name}"
        if path not in self.names:
            raise PickleRefused(f"it asks for the Python object {path[:100]!r}: a checkpoint must never run code")
        return Named(path, self.names[path])

    def _call(self, target: object, arguments: object) -> None:
        if not isinstance(target, Named) or type(arguments) is not tuple:
            raise PickleRefused("its pickle is damaged (a call of what is no function)")
        if len(arguments) > _MAX_ARGUMENTS:
            raise PickleRefused("its pickle is damaged (a call with too many arguments)")
        self.stack.append(target.build(*arguments))

    def _reduce(self, _: object) -> None:
        arguments, target = self._take(), self._take()
        self._call(target, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: object) -> None:
        options, arguments, target = self._take(), self._take(), self._take()
        if options:
            raise PickleRefused("its pickle is damaged (a call with options)")
        self._call(target, arguments)

    def _inst(self, argument: str) -> None:
        target = self._find(*argument.split(" ", 1))
        self._call(target, tuple(self._pop_to_mark()))

    def _obj(self, _: object) -> None:
        target, *arguments = self._pop_to_mark()
        self._call(target, tuple(arguments))

    def _build(self, _: object) -> None:
        self._take()  # the state: options of a run, a state dict's version numbers; nothing that weights need
        if not isinstance(self.stack[-1], (dict, Inert)):
            raise PickleRefused("its pickle is damaged (a state for what has none)")

    def _binpersid(self, _: object) -> None:
        self.stack.append(self.persistent(self._take()))


def check_key(key: object) -> Any:
    """A key for a dict: scalars only, since hashing a deep enough tuple would overflow the interpreter's stack."""
    if not isinstance(key, _KEY_TYPES):
        raise PickleRefused(f"its pickle has a dict key of type {type(key).__name__}, which no checkpoint needs")
    return key

"""Reading pickles as data: a small stack machine that can build values, never run anything.

A pickle is a program for a stack machine that is allowed to import and call whatever it names. The
machine here executes only the opcodes that build plain values. A global becomes what an explicit
table says, and calling one calls a function of that table, nothing else; there is no import, no
attribute access and no ``setattr`` anywhere. Everything else is refused by name.

``pickletools.genops`` of the standard library splits the bytes into opcodes. It allocates no more
than the file holds, whatever sizes the file declares.
"""

import collections
import dataclasses
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class ArchiveError(ValueError):
    """A file of weights that cannot be used; the message names it, the place and the way out."""


class Namespace(dict):
    """The attributes of a pickled ``argparse.Namespace``, as a dict."""


@dataclasses.dataclass(frozen=True)
class Call:
    """The stand-in of a callable global: ``make`` is what calling it does here."""

    make: Callable[..., Any]


@dataclasses.dataclass
class _NumpyDtype:
    """A dtype under construction; BUILD sets its byte order."""

    dtype: np.dtype


@dataclasses.dataclass
class _NumpyArray:
    """An array under construction; BUILD fills ``array``."""

    array: np.ndarray | None = None


_KEYS = (str, int, float, bool, bytes, type(None))  # scalars: nested tuples can overflow hash()
_NUMBER = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|\?)")


def printable(text: Any, limit: int = 80) -> str:
    """``text`` from an untrusted file in ASCII on one line, cut to ``limit`` characters."""
    plain = ascii(str(text)[: limit + 1])[1:-1]
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def _ordered_dict(pairs: Any = ()) -> collections.OrderedDict:
    result: collections.OrderedDict = collections.OrderedDict()
    for key, value in list(pairs):
        result[_key(key)] = value
    return result


def _numpy_dtype(code: Any, *_flags: Any) -> _NumpyDtype:
    if not isinstance(code, str) or not _NUMBER.fullmatch(code):
        raise ValueError(f"numpy dtype {printable(code)} is not a plain number")
    return _NumpyDtype(np.dtype(code))


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(_bytes(data), _dtype(dtype), count=1)[0].item()


def _numpy_frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _numpy_array(data, dtype, shape, "F" if order == "F" else "C")


def _numpy_array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("the shape of a numpy array is not made of counts")
    content = _bytes(data)
    flat = np.frombuffer(content, _dtype(dtype)) if content else np.zeros(0, _dtype(dtype))
    array = flat.reshape(tuple(shape), order=order)  # type: ignore[call-overload]
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _dtype(value: Any) -> np.dtype:
    if not isinstance(value, _NumpyDtype):
        raise TypeError("expected a numpy dtype")
    return value.dtype


def _bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError("expected bytes")
    return bytes(value)


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 spells bytes: ``_codecs.encode(text, "latin1")``."""
    if not isinstance(text, str) or encoding != "latin1":
        raise TypeError("expected latin1 text")
    return text.encode("latin1")


BASIC_GLOBALS: Mapping[str, Any] = {
    "argparse.Namespace": Call(lambda: Namespace()),
    "collections.OrderedDict": Call(_ordered_dict),
    "_codecs.encode": Call(_encode),
    "numpy.dtype": Call(_numpy_dtype),
    "numpy.ndarray": "numpy.ndarray",  # only ever an argument of _reconstruct
    **{
        f"numpy.{core}.{name}": Call(make)
        for core in ("core", "_core")  # numpy 1 and numpy 2
        for name, make in (
            ("multiarray.scalar", _numpy_scalar),
            ("multiarray._reconstruct", lambda *_: _NumpyArray()),
            ("numeric._frombuffer", _numpy_frombuffer),
        )
    },
}


def _key(value: Any) -> Any:
    if type(value) not in _KEYS:
        raise TypeError(f"a dict key is a {type(value).__name__}")
    return value


# Opcodes that push their argument, and opcodes that push a fresh constant.
_LITERALS = frozenset(
    "INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)
_FRESH: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))


class _Machine:
    """One run over one pickle; ``fail`` gives every complaint the file's name."""

    def __init__(self, name: str, allowed: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self.name, self.allowed, self.persistent = name, allowed, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def find(self, dotted: str) -> Any:
        """What the table says for a global, by its dotted name."""
        if dotted not in self.allowed:
            raise ArchiveError(
                f"{self.name}: refuses to load {printable(dotted)} (not a tensor type); "
                "nothing was run - if you trust the file, save its state_dict() alone with PyTorch"
            )
        return self.allowed[dotted]

    def items(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pairs(self) -> list[tuple[Any, Any]]:
        flat = self.items()
        return list(zip(flat[::2], flat[1::2], strict=True))

    def set_items(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, collections.OrderedDict):
            raise TypeError(f"sets items of a {type(target).__name__}")
        for key, value in pairs:
            target[_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError(f"appends to a {type(target).__name__}")
        target.extend(items)

    def call(self, args: Any, target: Any) -> Any:
        if not isinstance(target, Call) or type(args) is not tuple:
            raise TypeError(f"calls a {type(target).__name__}")
        return target.make(*args)

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if type(target) is Namespace and type(state) is dict:
            if not all(type(key) is str for key in state):
                raise TypeError("a Namespace has an attribute that is not a string")
            target.update(state)
        elif type(target) is collections.OrderedDict and type(state) is dict:
            pass  # attributes such as a state dict's _metadata: of no use here
        elif type(target) is _NumpyDtype and type(state) is tuple:
            if state[1] not in ("<", ">", "|", "="):
                raise TypeError("a numpy dtype has no byte order")
            target.dtype = target.dtype.newbyteorder(state[1])
        elif type(target) is _NumpyArray and type(state) is tuple:
            _version, shape, dtype, fortran, data = state
            target.array = _numpy_array(data, dtype, shape, "F" if fortran else "C")
            self.stack[-1] = target.array
        else:
            raise TypeError(f"sets the state of a {type(target).__name__}")

    def step(self, op: str, arg: Any) -> None:
        """Execute one opcode other than STOP."""
        stack = self.stack
        if op in _LITERALS:
            stack.append(arg)
        elif op in _FRESH:
            stack.append(_FRESH[op]())
        elif op in _PUT:
            self.memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in _GET:
            value = self.memo[arg]
            built = type(value) is _NumpyArray and value.array is not None
            stack.append(value.array if built else value)
        elif op in _TUPLES:
            count = _TUPLES[op]
            items = tuple(stack.pop() for _ in range(count))[::-1]
            stack.append(items)
        elif op == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif op == "TUPLE":
            items = tuple(self.items())
            self.stack.append(items)
        elif op == "LIST":
            items = self.items()
            self.stack.append(items)
        elif op == "DICT":
            pairs = self.pairs()
            self.stack.append({})
            self.set_items(pairs)
        elif op == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.set_items([(key, value)])
        elif op == "SETITEMS":
            self.set_items(self.pairs())
        elif op == "APPEND":
            self.append([stack.pop()])
        elif op == "APPENDS":
            self.append(self.items())
        elif op == "ADDITEMS":
            items = self.items()
            if type(self.stack[-1]) is not set:
                raise TypeError(f"adds to a {type(self.stack[-1]).__name__}")
            self.stack[-1].update(_key(item) for item in items)
        elif op == "GLOBAL":
            stack.append(self.find(".".join(arg.split(" ", 1))))
        elif op == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if type(attribute) is not str or type(module) is not str:
                raise TypeError("names a global with something that is not a string")
            stack.append(self.find(f"{module}.{attribute}"))
        elif op == "INST":
            self.find(".".join(arg.split(" ", 1)))
            raise TypeError("creates an instance of an old-style class")
        elif op in ("REDUCE", "NEWOBJ"):
            stack.append(self.call(stack.pop(), stack.pop()))
        elif op == "BUILD":
            self.build(stack.pop())
        elif op == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif op == "POP":
            stack.pop() if stack else self.items()
        elif op == "POP_MARK":
            self.items()
        elif op == "DUP":
            stack.append(stack[-1])
        elif op not in ("PROTO", "FRAME"):
            what = f" {arg}" if isinstance(arg, int) else ""
            raise TypeError(f"uses the opcode {op}{what}, which no weights file needs")


def _no_persistent(_pid: Any) -> Any:
    raise TypeError("refers to data outside of itself")


def read_inert_pickle(
    data: bytes,
    name: str,
    allowed: Mapping[str, Any] = BASIC_GLOBALS,
    persistent: Callable[[Any], Any] = _no_persistent,
) -> Any:
    """The value a pickle describes, built without running anything the pickle asks for.

    ``data`` is the pickle (any protocol), ``name`` the file's name for messages. ``allowed`` maps
    dotted names of globals to ``Call`` stand-ins or plain values; ``persistent`` turns a persistent
    identifier into a value. Dicts, lists, tuples, sets, scalars, text, bytes, numpy arrays and
    ``argparse.Namespace`` (as ``Namespace``) come back. Containers may refer to themselves.

    Raises ``ArchiveError`` for a global outside of ``allowed``, naming it, and for anything
    malformed, naming the byte position.
    """
    machine = _Machine(name, allowed, persistent)
    position = 0
    try:
        for opcode, arg, at in pickletools.genops(data):
            position = at or 0
            if opcode.name == "STOP":
                return machine.stack[-1]
            machine.step(opcode.name, arg)
    except ArchiveError:
        raise
    # Everything a malformed pickle can make the standard library and the code above raise.
    except (ValueError, TypeError, LookupError, struct.error, OverflowError, EOFError) as error:
        raise ArchiveError(
            f"{name}: damaged or hostile pickle at byte {position}: {printable(error, 200)}; "
            "nothing was run - download the file again from its publisher"
        ) from error
    except (MemoryError, RecursionError) as error:
        raise ArchiveError(
            f"{name}: the pickle is too large or too deeply nested to be a weights file "
            f"(byte {position}); download the file again from its publisher"
        ) from error
    raise ArchiveError(f"{name}: the pickle has no end; download the file again")

"""Reads pickles that hold plain data, and nothing else, without Python's unpickler.

InsightFace ships its verification sets as pickles, and a pickle is a program: ``pickle.load`` runs
whatever functions the file names. This module has its own small machine that knows only the
opcodes from which bytes, booleans, integers, lists and tuples are made; no opcode of it imports,
calls or builds anything else. Python-2 packs (BINSTRING) and Python-3 packs (BINBYTES) are read
alike: a Python-2 string is bytes. Python-3 packs written with protocol 0, 1 or 2 are refused: they
rebuild each bytes object by a call of ``_codecs.encode``; InsightFace's packs do not.

Opcodes: CPython's ``Lib/pickletools.py`` and PEP 307, 3154, 574.
"""

import pickletools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

Plain: TypeAlias = "bytes | bool | int | list[Plain] | tuple[Plain, ...]"
"""All that a restricted pickle can hold."""

_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False}
_BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "SHORT_BINSTRING", "BINSTRING"}
_VALUES = {*_BYTES, "INT", "BININT", "BININT1", "BININT2", *_CONSTANTS}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONTAINERS = {"EMPTY_LIST", "LIST", "APPEND", "APPENDS", "TUPLE", *_TUPLES}
_IMPORTS = {"GLOBAL", "INST", "STACK_GLOBAL"}
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_ALLOWED = {"PROTO", "FRAME", "MARK", "STOP", *_VALUES, *_PUTS, *_GETS, *_CONTAINERS}


class UnsafePickle(ValueError):
    """A pickle that asks for more than plain data, or that is broken; nothing of it was run."""


def load_plain(path: Path, max_bytes: int = 2**30, max_opcodes: int = 1_000_000) -> Plain:
    """Returns the plain data in the pickle file ``path``; executes nothing that the file names.

    Args:
        path: The file.
        max_bytes: Largest file that is read, in bytes (the usual packs have 50 to 200 MB).
        max_opcodes: Most opcodes; a pack has about two per image. Bounds the objects in memory.

    Raises:
        OSError: If the file cannot be read.
        UnsafePickle: If it is larger, is no complete pickle, or holds anything but bytes, booleans,
            integers, lists and tuples; the message names the first function that it asks for.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UnsafePickle(f"{path}: needed at most {max_bytes} bytes, found more")
    return parse_plain(content, str(path), max_opcodes)


def parse_plain(content: bytes, source: str, max_opcodes: int = 1_000_000) -> Plain:
    """Returns the plain data in the pickle ``content``; ``source`` stands first in each error.

    Raises:
        UnsafePickle: As :func:`load_plain`.
    """
    _check_opcodes(content, source, max_opcodes)
    machine = _Machine(source)
    for name, argument, _ in _opcodes(content, source):
        machine.step(name, argument)
    return machine.result()


def _opcodes(content: bytes, source: str) -> Iterator[tuple[str, object, int]]:
    """Yields (opcode, argument, position); pickletools only splits the bytes, it runs nothing."""
    try:
        for opcode, argument, position in pickletools.genops(content):
            yield opcode.name, argument, position or 0
    except ValueError as error:
        raise UnsafePickle(f"{source}: needed a complete pickle, found: {error}") from None
    if (position or 0) + 1 != len(content):
        raise UnsafePickle(f"{source}: needed nothing behind the pickle's end, found more bytes")


def _check_opcodes(content: bytes, source: str, max_opcodes: int) -> None:
    """Raises unless every opcode is allowed; before any value is made."""
    refused: str | None = None
    texts: deque[str] = deque(maxlen=2)  # what a STACK_GLOBAL would import: module, name
    try:
        for count, (name, argument, position) in enumerate(_opcodes(content, source), start=1):
            if count > max_opcodes:
                refused = refused or f"more than {max_opcodes} opcodes"
                break
            if name in _IMPORTS:
                names = texts if name == "STACK_GLOBAL" else str(argument)[:120].split()
                refused = f"{name} {'.'.join(names)!r} at byte {position}"
                break
            if name not in _ALLOWED and refused is None:
                refused = f"opcode {name} at byte {position}"
            if name in _TEXTS:
                texts.append(str(argument)[:60])
    except UnsafePickle:
        if refused is None:
            raise
    if refused is not None:
        raise UnsafePickle(
            f"{source}: needed a pickle of bytes, booleans, integers, lists and tuples only, "
            f"found {refused}"
        )


class _Machine:
    """The stack machine: values, marks (heights of the stack) and the memo."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.stack: list[Plain] = []
        self.marks: list[int] = []
        self.memo: dict[int, Plain] = {}

    def step(self, name: str, argument: object) -> None:
        """Carries out one allowed opcode."""
        if name in _VALUES:
            self.stack.append(_value(name, argument))
        elif name in _PUTS:
            key = argument if isinstance(argument, int) else len(self.memo)
            self.memo[key] = self._top()
        elif name in _GETS:
            self.stack.append(self._remembered(argument))
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in _CONTAINERS:
            self._contain(name)

    def result(self) -> Plain:
        """The one value that the pickle leaves."""
        if len(self.stack) != 1 or self.marks:
            raise self._broken(f"{len(self.stack)} values and {len(self.marks)} open marks left")
        return self.stack[0]

    def _contain(self, name: str) -> None:
        if name == "EMPTY_LIST":
            self.stack.append([])
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            self.stack.append(tuple(self._pop_to_mark()))
        elif name == "LIST":
            self.stack.append(self._pop_to_mark())
        else:
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            target = self._top()
            if not isinstance(target, list):
                raise self._broken(f"{name} to {type(target).__name__}")
            target.extend(items)

    def _pop(self, count: int) -> list[Plain]:
        floor = self.marks[-1] if self.marks else 0
        start = len(self.stack) - count
        if start < floor:
            raise self._broken("an opcode that takes more values than there are")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _pop_to_mark(self) -> list[Plain]:
        if not self.marks:
            raise self._broken("an opcode that needs a mark without one")
        items = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return items

    def _top(self) -> Plain:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self._broken("an opcode that needs a value without one")
        return self.stack[-1]

    def _remembered(self, key: object) -> Plain:
        value = self.memo.get(key) if isinstance(key, int) else None
        if value is None:
            raise self._broken(f"a reference to memo {key}, which was not set")
        if isinstance(value, list | tuple):  # could contain itself, or grow without bound
            raise self._broken(f"a second reference to one {type(value).__name__}")
        return value

    def _broken(self, found: str) -> UnsafePickle:
        return UnsafePickle(f"{self.source}: needed a well-formed plain pickle, found {found}")


def _value(name: str, argument: object) -> Plain:
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if isinstance(argument, str):  # a Python-2 string: pickletools shows its bytes as Latin-1
        return argument.encode("latin-1")
    if isinstance(argument, bytes | int):
        return argument
    raise UnsafePickle(f"needed bytes or an integer for {name}, found {type(argument).__name__}")

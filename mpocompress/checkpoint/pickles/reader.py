"""Read a pickle as data: nothing that it names is imported or called.

A pickle is a program for a small stack machine. `pickletools` of the standard library decodes its instructions, which
are executed here on plain values only. For a call, `build` is used: it knows a few harmless functions by name and
returns an inert `Instance` for every other.

`pickle.Unpickler` with its own `find_class` and `persistent_load` is not used, for three reasons. It calls everything
that `find_class` returns, with arguments of the file's choice: a harmless function such as `bytearray` or `range` then
allocates any amount of memory (REDUCE bombs), and objects that receive state or items run their own methods. It has no
limit on work: a few kilobytes can copy a large list again and again, or fill a dict with keys whose hashes collide;
here every instruction and every copied value counts towards `MAX_WORK`. And it hashes every key: a
deeply nested tuple overflows the C stack, which ends the process; here keys are checked first (`Keys`).
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

from mpocompress.checkpoint.dtypes import DTYPES
from mpocompress.checkpoint.lazy_tensors import AnyLazyTensor
from mpocompress.checkpoint.pickles.values import Global, Instance, Keys
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

MAX_WORK = 20_000_000
"""Largest number of executed instructions and copied values; an instruction that makes a large object counts more."""

Build = Callable[[str, tuple[Any, ...]], object]
"""Returns a value for a call, from the name of the function and its arguments."""

Fetch = Callable[[object], object]
"""Returns the value for a persistent id: a storage that is kept beside the pickle."""

_DTYPES = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
_TEXT_SHARE = 256  # characters or bytes that cost as much to copy as one value
_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _MalformedError(Exception):
    """The instructions do not fit the values on the stack."""


def read_pickle(
    stream: BinaryIO,
    where: str,
    *,
    build: Build,
    fetch: Fetch,
) -> object:
    """Read one pickle, of any protocol, as data.

    Args:
        stream: positioned at the start of the pickle; afterwards at its end.
        where: the file, for messages.
        build: returns a value for a call.
        fetch: returns a value for a persistent id.

    Returns:
        Plain values and containers, results of `build` and `fetch`, and `Global` and `Instance` for the rest.

    Raises:
        CheckpointError: the pickle is truncated or malformed, larger than any checkpoint needs, or uses the extension
            registry.

    Example:
        >>> import io, pickle
        >>> from pathlib import PurePosixPath
        >>> read_pickle(io.BytesIO(pickle.dumps({"a": [1, 2.5]})), "x.pt", build=Instance, fetch=str)
        {'a': [1, 2.5]}
        >>> read_pickle(io.BytesIO(pickle.dumps(PurePosixPath("a"))), "x.pt", build=Instance, fetch=str).class_name
        'pathlib.PurePosixPath'
    """
    machine = _Machine(build, fetch)
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name == "STOP":
                return machine.result()
            step = _STEPS.get(instruction.name)
            if step is None:
                raise _MalformedError(f"instruction {instruction.name}")
            machine.spend(_COSTS.get(instruction.name, 1))
            step(machine, argument)
        raise _MalformedError("it has no end")
    except CheckpointError:
        raise
    except Exception as error:  # a malformed pickle can make nearly anything fail
        raise CheckpointError(
            where=where,
            found=f"a pickle that cannot be read ({shown(str(error)) or type(error).__name__})",
            why="it is truncated, damaged or malicious",
            action="Download the file again, or save the model again.",
        ) from error


class _Machine:
    """The stack, the stacks below each mark, and the numbered memo; one method per instruction."""

    def __init__(self, build: Build, fetch: Fetch) -> None:
        self._build = build
        self._fetch = fetch
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._globals: dict[str, object] = {}
        self._key = Keys()
        self._work = 0

    def spend(self, work: int) -> None:
        """Count work, and refuse more than any checkpoint needs."""
        self._work += work
        if self._work > MAX_WORK:
            raise _MalformedError(f"more than {MAX_WORK:,} instructions and copies")

    def result(self) -> object:
        if self._below or len(self._stack) != 1:
            raise _MalformedError("values left on the stack at its end")
        return self._stack.pop()

    def op_ignore(self, _: object) -> None:
        pass

    def op_push(self, value: object) -> None:
        self._stack.append(value)

    def op_tuple1(self, _: object) -> None:
        self._stack[-1] = (self._stack[-1],)

    def op_tuple2(self, _: object) -> None:
        second = self._stack.pop()
        self._stack[-1] = (self._stack[-1], second)

    def op_tuple3(self, _: object) -> None:
        third, second = self._stack.pop(), self._stack.pop()
        self._stack[-1] = (self._stack[-1], second, third)

    def op_pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._above_mark()

    def op_dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def op_mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def op_pop_mark(self, _: object) -> None:
        self._above_mark()

    def op_put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def op_memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def op_get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def op_tuple(self, _: object) -> None:
        values = self._above_mark()
        self._stack.append(tuple(values))

    def op_list(self, _: object) -> None:
        values = self._above_mark()
        self._stack.append(values)

    def op_dict(self, _: object) -> None:
        values = self._above_mark()
        self._stack.append({})
        self._set(values)

    def op_frozenset(self, _: object) -> None:
        values = self._above_mark()
        self._stack.append(frozenset(map(self._key, values)))

    def op_append(self, _: object) -> None:
        value = self._stack.pop()
        self._extend([value])

    def op_appends(self, _: object) -> None:
        values = self._above_mark()
        self._extend(values)

    def op_setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def op_setitems(self, _: object) -> None:
        values = self._above_mark()
        self._set(values)

    def op_global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def op_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def op_reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._call(function, arguments)

    def op_newobj_ex(self, _: object) -> None:
        named, arguments, function = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._call(function, (*arguments, named) if named else arguments)

    def op_inst(self, argument: str) -> None:
        arguments = self._above_mark()
        self._name(*argument.split(" ", 1))
        self._call(self._stack.pop(), tuple(arguments))

    def op_obj(self, _: object) -> None:
        function, *arguments = self._above_mark()
        self._call(function, tuple(arguments))

    def op_build(self, _: object) -> None:
        state = self._stack.pop()
        value = self._stack[-1]
        if isinstance(value, Instance):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # the second is of __slots__
            if all(isinstance(part, dict | None) for part in parts):
                for part in parts:
                    self.spend(len(part or ()))
                    value.attributes.update(part or {})
            else:
                value.attributes["__setstate__"] = state
        elif isinstance(value, OrderedDict) and isinstance(state, dict):
            if "_metadata" in state:  # a state dict carries the versions of its modules this way
                vars(value)["_metadata"] = state["_metadata"]
        elif not isinstance(value, AnyLazyTensor):
            raise _MalformedError(f"state for a {type(value).__name__}")

    def op_persid(self, argument: str) -> None:
        self._stack.append(self._fetch(argument))

    def op_binpersid(self, _: object) -> None:
        self._stack.append(self._fetch(self._stack.pop()))

    def _above_mark(self) -> list[Any]:
        values = self._stack
        self._stack = self._below.pop()
        return values

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _MalformedError("a name that is not text")
        full = f"{_PYTHON_2_MODULES.get(module, module)}.{name}"
        if full not in self._globals:
            self._globals[full] = _DTYPES.get(full) or Global(full)
        self._stack.append(self._globals[full])

    def _call(self, function: object, arguments: object) -> None:
        if not isinstance(arguments, tuple):
            raise _MalformedError("arguments that are not a tuple")
        self.spend(sum(map(_extent, arguments)))
        if isinstance(function, Global):
            self._stack.append(self._build(function.name, arguments))
        else:
            self._stack.append(Instance(f"a call of a {type(function).__name__}", arguments))

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(map(self._key, values))
        elif isinstance(target, Instance):
            target.entries.extend(values)
        else:
            raise _MalformedError(f"entries for a {type(target).__name__}")

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        into = target.items if isinstance(target, Instance) else target
        if not isinstance(into, dict) or len(values) % 2:
            raise _MalformedError(f"{len(values)} keys and values for a {type(target).__name__}")
        into.update((self._key(values[index]), values[index + 1]) for index in range(0, len(values), 2))


def _extent(value: object) -> int:
    """Cost of copying a value."""
    if isinstance(value, str | bytes | bytearray):
        return len(value) // _TEXT_SHARE
    return len(value) if isinstance(value, list | dict | set | frozenset | tuple) else 0


def _pushing(make: Callable[[], object]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.op_push(make())


_SPECIAL: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.op_ignore,
    "FRAME": _Machine.op_ignore,
    "NONE": _pushing(lambda: None),
    "NEWTRUE": _pushing(lambda: True),
    "NEWFALSE": _pushing(lambda: False),
    "EMPTY_TUPLE": _pushing(tuple),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_SET": _pushing(set),
    "ADDITEMS": _Machine.op_appends,
    "NEWOBJ": _Machine.op_reduce,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.op_put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.op_get),
    **dict.fromkeys(
        [
            "INT",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG",
            "LONG1",
            "LONG4",
            "FLOAT",
            "BINFLOAT",
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "UNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE",
            "BINUNICODE8",
            "BINBYTES",
            "SHORT_BINBYTES",
            "BINBYTES8",
            "BYTEARRAY8",
        ],
        _Machine.op_push,  # the decoded argument is the value
    ),
}
_COSTS = {
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "DICT", "LIST"), 2),
    **dict.fromkeys(("EMPTY_SET", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"), 8),
}
_STEPS = {
    instruction.name: _SPECIAL.get(instruction.name) or getattr(_Machine, f"op_{instruction.name.lower()}", None)
    for instruction in pickletools.opcodes
}

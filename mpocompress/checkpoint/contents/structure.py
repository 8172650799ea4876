"""Traversals of the values in a file, without recursion, so that no nesting in a file can break them."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.lazy_tensors import (
    AnyLazyTensor,
    Device,
    LazyMetaTensor,
    LazySparseTensor,
    LazyTensor,
    Size,
)
from mpocompress.checkpoint.pickles.values import Global, Instance, UnusualTensor
from mpocompress.errors import CheckpointError

MAX_DEPTH = 100
MAX_VALUES = 5_000_000

_CONTAINERS = (dict, list, tuple, set)
_CONTAINERS_AND_OBJECTS = (*_CONTAINERS, Instance)
_PLAIN_CONTAINERS = (dict, OrderedDict, Counter, list, tuple)  # a set has another order in every process
_PLAIN_LEAVES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(Size, DType, Device, LazyTensor, LazySparseTensor, LazyMetaTensor),
)
_END = object()
NOTHING = object()
"""Result for a value of which no part can be kept."""


def check_structure(root: object, where: str) -> None:
    """Refuse values that contain themselves, are nested deeper than `MAX_DEPTH`, or are more than `MAX_VALUES`.

    Afterwards a recursion over `root` is at most `MAX_DEPTH` deep. Objects are not visited: they may refer back to
    their container, and are never copied or written.

    Args:
        root: the value in the file.
        where: the file, for the message.

    Raises:
        CheckpointError: naming which of the three it is.
    """
    levels = {id(root): 1}  # id of a finished container -> levels of nesting in it
    on_path = {id(root)}
    stack = [(root, _children(root))]
    count = 0
    while stack:
        value, rest = stack[-1]
        child = next(rest, _END)
        if child is _END:
            stack.pop()
            on_path.discard(id(value))
            if stack:
                _deepen(levels, stack[-1][0], value)
            continue
        count += 1
        if count > MAX_VALUES:
            raise _malformed(where, f"more than {MAX_VALUES:,} values")
        if not isinstance(child, _CONTAINERS):
            continue
        if id(child) in on_path:
            raise _malformed(where, "a value that contains itself")
        if id(child) in levels:
            _deepen(levels, value, child)
        else:
            levels[id(child)] = 1
            on_path.add(id(child))
            stack.append((child, _children(child)))
    if levels[id(root)] > MAX_DEPTH:
        raise _malformed(where, f"values nested more than {MAX_DEPTH} deep")


def leaves(root: object) -> Iterator[object]:
    """Yield the values in `root` that are no containers, in file order; each container is visited once.

    Example:
        >>> list(leaves({"a": [1, 2], "b": "c"}))
        [1, 2, 'c']
    """
    if not isinstance(root, _CONTAINERS_AND_OBJECTS):
        yield root
        return
    seen = {id(root)}
    stack = [_children(root)]
    while stack:
        child = next(stack[-1], _END)
        if child is _END:
            stack.pop()
        elif not isinstance(child, _CONTAINERS_AND_OBJECTS) or isinstance(child, Size):
            yield child
        elif id(child) not in seen:
            seen.add(id(child))
            stack.append(_children(child))


def tensors_in(root: object) -> Iterator[AnyLazyTensor]:
    """Yield the tensors in `root`, at any depth; one that is held twice may come twice."""
    return (leaf for leaf in leaves(root) if isinstance(leaf, AnyLazyTensor))


def tensor_bytes(root: object) -> int:
    """Return the bytes of all distinct storages in `root`."""
    sizes: dict[tuple[int, int], int] = {}
    for tensor in tensors_in(root):
        parts = (tensor.indices, tensor.values) if isinstance(tensor, LazySparseTensor) else (tensor,)
        for part in parts:
            if isinstance(part, LazyTensor) and part.storage.size_bytes:
                sizes[id(part.storage.buffer), part.storage.offset] = part.storage.size_bytes
    return sum(sizes.values())


def plain_part(root: object, name: str) -> tuple[object, tuple[tuple[str, str], ...]]:
    """Return the part of a value that a file for `torch.load(..., weights_only=True)` can hold.

    Args:
        root: any value, at most `MAX_DEPTH` deep.
        name: its position in the file.

    Returns:
        The value itself if all of it can be held; otherwise a copy without the rest (None in its place in lists), or
        `NOTHING`. And position and type of every part that is dropped.

    Example:
        >>> plain_part({"lr": 0.1, "path": object()}, "args")
        ({'lr': 0.1}, (('args.path', 'object'),))
    """
    dropped: list[tuple[str, str]] = []
    seen: dict[int, object] = {}

    def part(value: object, place: str) -> object:
        if type(value) in _PLAIN_LEAVES:
            return value
        if type(value) not in _PLAIN_CONTAINERS:
            dropped.append((place, _type_name(value)))
            return NOTHING
        if id(value) not in seen:
            before = len(dropped)
            copied = _copied(value, place, part)
            whole = len(dropped) == before and not (isinstance(value, dict) and len(copied) < len(value))
            seen[id(value)] = value if whole else copied
        return seen[id(value)]

    return part(root, name), tuple(dropped)


def _copied(value: Any, place: str, part: Callable[[object, str], object]) -> Any:
    """A container with the plain parts of its entries."""
    if not isinstance(value, dict):
        parts = [part(inner, f"{place}.{number}") for number, inner in enumerate(value)]
        return type(value)([None if inner is NOTHING else inner for inner in parts])
    copied = emptied(value)
    for key, inner in value.items():
        plain = part(inner, f"{place}.{key}") if is_plain_key(key) else part(key, f"{place}, a key")
        if plain is not NOTHING:
            copied[key] = plain
    return copied


def emptied(value: dict[Any, Any]) -> dict[Any, Any]:
    """Return a new empty dict of the same type, with the module versions (`_metadata`) that a state dict has.

    Example:
        >>> import torch
        >>> dict(emptied(torch.nn.Linear(1, 1).state_dict())._metadata)
        {'': {'version': 1}}
    """
    copied = copy.copy(value)
    copied.clear()
    if isinstance(value, OrderedDict) and plain_part(vars(value), "")[1]:
        vars(copied).clear()
    return copied


def is_plain_key(key: object) -> bool:
    """Tell whether a file for `torch.load(..., weights_only=True)` can hold a key of a dict.

    Example:
        >>> is_plain_key(("a", 1)), is_plain_key(object())
        (True, False)
    """
    parts = key if type(key) is tuple else (key,)
    return all(type(part) in _PLAIN_LEAVES and not isinstance(part, AnyLazyTensor) for part in parts)


def _type_name(value: object) -> str:
    if isinstance(value, Instance):
        return value.class_name
    if isinstance(value, UnusualTensor):
        return value.kind
    return f"class or function ({value.name})" if isinstance(value, Global) else type(value).__name__


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
        if isinstance(value, OrderedDict) and vars(value):  # a state dict carries `_metadata` this way
            yield vars(value)
    elif isinstance(value, list | tuple | set):
        yield from value
    elif isinstance(value, Instance):
        yield from value.children()


def _deepen(levels: dict[int, int], outer: object, inner: object) -> None:
    levels[id(outer)] = max(levels[id(outer)], levels[id(inner)] + 1)


def _malformed(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        where=where,
        found=found,
        why="no valid checkpoint has this structure: the file is damaged or malicious",
        action="Get the model from a source you trust.",
    )

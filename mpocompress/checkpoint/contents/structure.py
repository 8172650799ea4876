"""Walks over what a pickle held, without recursion, so that no nesting in a file can break them."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpocompress.checkpoint.pickles.values import Global, Instance, UnusualTensor
from mpocompress.errors import CheckpointError

MAX_DEPTH = 100
MAX_VALUES = 5_000_000

_CONTAINERS = (dict, list, tuple, set)
_CONTAINERS_AND_OBJECTS = (*_CONTAINERS, Instance)
_PLAIN_CONTAINERS = (dict, OrderedDict, Counter, list, tuple)  # a set has another order in every process
_PLAIN_LEAVES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(torch.Size, torch.dtype, torch.device, torch.Tensor, torch.nn.Parameter),
)
_END = object()
NOTHING = object()
"""What is left of a value that cannot be held at all."""


def check_structure(root: object, where: str) -> None:
    """Refuse values that contain themselves, or are nested too deep or too many to be a checkpoint.

    Afterwards a recursion over `root` is at most `MAX_DEPTH` deep. Objects are not looked into: they may well refer
    back to what holds them, and are never copied or written.

    Args:
        root: what a file held.
        where: the file, for the message.

    Raises:
        CheckpointError: naming which of the three it was.
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
    """Yield everything in `root` that is no container, each container entered once.

    Args:
        root: any value.

    Yields:
        The leaves, in file order of their containers.

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
        elif not isinstance(child, _CONTAINERS_AND_OBJECTS) or isinstance(child, torch.Size):
            yield child
        elif id(child) not in seen:
            seen.add(id(child))
            stack.append(_children(child))


def tensors_in(root: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in `root`, at any depth.

    Args:
        root: any value.

    Yields:
        The tensors; one that is held twice may come twice.
    """
    return (leaf for leaf in leaves(root) if isinstance(leaf, torch.Tensor))


def tensor_bytes(root: object) -> int:
    """Return the bytes of all tensors in `root`, shared memory counted once.

    Args:
        root: any value.

    Returns:
        Bytes of the distinct storages.
    """
    sizes = {}
    for tensor in tensors_in(root):
        parts = (tensor._indices(), tensor._values()) if tensor.layout is torch.sparse_coo else (tensor,)
        for part in parts:
            if is_dense(part):
                storage = part.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell an ordinary tensor from sparse, quantized, nested and data-less ones.

    Args:
        tensor: any tensor.

    Returns:
        Whether its elements lie, strided, in memory of its own.

    Example:
        >>> is_dense(torch.ones(2)), is_dense(torch.ones(2).to_sparse()), is_dense(torch.ones(2, device="meta"))
        (True, False, False)
    """
    ordinary = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return ordinary and tensor.device.type == "cpu" and not tensor.is_quantized and not tensor.is_nested


def plain_part(root: object, name: str) -> tuple[object, tuple[tuple[str, str], ...]]:
    """Return what of a value a plain weights-only torch.save can hold.

    Args:
        root: any value, at most `MAX_DEPTH` deep.
        name: where it stands.

    Returns:
        The value itself where it can hold all of it. Otherwise a copy without the rest (None in its place in lists), or
        `NOTHING`; and for every part left out where it stood, and its type.

    Example:
        >>> plain_part({"lr": 0.1, "path": object()}, "args")
        ({'lr': 0.1}, (('args.path', 'object'),))
    """
    left_out: list[tuple[str, str]] = []
    seen: dict[int, object] = {}

    def part(value: object, place: str) -> object:
        if type(value) in _PLAIN_LEAVES:
            return value
        if type(value) not in _PLAIN_CONTAINERS:
            left_out.append((place, _type_name(value)))
            return NOTHING
        if id(value) not in seen:
            before = len(left_out)
            copied = _copied(value, place, part)
            whole = len(left_out) == before and not (isinstance(value, dict) and len(copied) < len(value))
            seen[id(value)] = value if whole else copied
        return seen[id(value)]

    return part(root, name), tuple(left_out)


def _copied(value: Any, place: str, part: Callable[[object, str], object]) -> Any:
    """A container with the parts of its entries, those that have none left out."""
    if not isinstance(value, dict):
        parts = [part(inner, f"{place}.{number}") for number, inner in enumerate(value)]
        return type(value)([None if inner is NOTHING else inner for inner in parts])
    copied = emptied(value)
    for key, inner in value.items():
        kept = part(inner, f"{place}.{key}") if is_plain_key(key) else part(key, f"{place}, a key")
        if kept is not NOTHING:
            copied[key] = kept
    return copied


def emptied(value: dict[Any, Any]) -> dict[Any, Any]:
    """Return an empty dict of the same type, with the versions that a state dict carries.

    Args:
        value: any dict.

    Returns:
        A new dict.

    Example:
        >>> emptied(torch.nn.Linear(1, 1).state_dict())._metadata
        {'': {'version': 1}}
    """
    copied = copy.copy(value)
    copied.clear()
    if isinstance(value, OrderedDict) and plain_part(vars(value), "")[1]:
        vars(copied).clear()
    return copied


def is_plain_key(key: object) -> bool:
    """Tell whether a key of a dict can be held by a plain weights-only torch.save.

    Args:
        key: any key.

    Returns:
        Whether it can.

    Example:
        >>> is_plain_key(("a", 1)), is_plain_key(torch.ones(1))
        (True, False)
    """
    inner = key if type(key) is tuple else (key,)
    return all(type(one) in _PLAIN_LEAVES and not isinstance(one, torch.Tensor) for one in inner)


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
        why="no checkpoint is built like that, so the file is damaged or made to do harm",
        action="Get the model from a source you trust.",
    )

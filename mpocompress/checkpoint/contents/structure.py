"""Walks over what a pickle held, without recursion, so that no nesting in a file can break them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator

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
        if is_dense(tensor):
            storage = tensor.untyped_storage()
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


def foreign_type(root: object) -> str | None:
    """Return the name of a type in `root` that a plain weights-only torch.save cannot hold.

    Args:
        root: any value.

    Returns:
        The first such type, or what is named in the pickle; None if there is none.

    Example:
        >>> foreign_type({"a": [1, None]}), foreign_type({"a": [object()]})
        (None, 'object')
    """
    if isinstance(root, _CONTAINERS) and type(root) not in (*_PLAIN_CONTAINERS, torch.Size):
        return _type_name(root)
    seen = {id(root)}
    stack = [_children(root)] if isinstance(root, _CONTAINERS) else [iter((root,))]
    while stack:
        child = next(stack[-1], _END)
        if child is _END:
            stack.pop()
        elif type(child) in _PLAIN_CONTAINERS:
            if id(child) not in seen:
                seen.add(id(child))
                stack.append(_children(child))
        elif type(child) not in _PLAIN_LEAVES:
            return _type_name(child)
    return None


def _type_name(value: object) -> str:
    if isinstance(value, Instance):
        return value.class_name
    if isinstance(value, UnusualTensor):
        return f"Tensor, {value.kind}"
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

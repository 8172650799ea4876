"""Which dict of a file is the state dict; a whole module counts as the one it would have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mpocompress.checkpoint.contents.modules import is_module, module_state
from mpocompress.checkpoint.contents.structure import MAX_DEPTH, is_dense
from mpocompress.checkpoint.pickles.values import Instance
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

PREFERRED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
_AVERAGED = {"ema", "swa", "polyak", "averaged", "average", "avg", "shadow"}
_WORD = re.compile(r"[a-z]+")
_MOST_SHOWN = 20
_HOLDERS = (dict, list, tuple, Instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDict:
    """A dict of tensors found in a file.

    Args:
        path: the keys, numbers of entries in lists, and names of attributes that lead to it from the top.
        value: the dict itself, not copied; of a module its parameters and buffers.
        classes: of a module, path -> class of each module in it.
    """

    path: tuple[str, ...]
    value: dict[Any, Any]
    classes: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The path as one dotted key; "" is the top."""
        return ".".join(self.path)


def is_averaged(name: str) -> bool:
    """Tell whether a key names an average of the weights over training (EMA, SWA).

    Args:
        name: one key of a dict.

    Returns:
        Whether a word of it says so.

    Example:
        >>> is_averaged("model_ema"), is_averaged("schema")
        (True, False)
    """
    return not _AVERAGED.isdisjoint(_WORD.findall(name.lower()))


def is_weight(value: object) -> bool:
    """Tell whether a value is a floating tensor with two dims or more.

    Args:
        value: any value of a dict.

    Returns:
        Whether it is; sparse, quantized and other unusual tensors are not.

    Example:
        >>> is_weight(torch.ones(2, 2)), is_weight(torch.ones(2)), is_weight(3)
        (True, False, False)
    """
    return isinstance(value, torch.Tensor) and is_dense(value) and value.is_floating_point() and value.dim() >= 2


def state_dicts(root: object) -> list[StateDict]:
    """Find the state dicts in a file: dicts that hold a weight (see `is_weight`).

    Of nested ones the outer counts, unless an inner one holds more parameters (a training checkpoint with a stray
    tensor beside its state dict).

    Args:
        root: what the file holds, checked by `check_structure`.

    Returns:
        The candidates, shallow before deep, then in file order.

    Example:
        >>> [found.key for found in state_dicts({"epoch": 3, "model": {"fc.weight": torch.ones(2, 2)}})]
        ['model']
    """
    candidates = [found for found in _dicts(root) if any(is_weight(entry) for entry in found.value.values())]
    sizes = {found.path: _parameters(found.value) for found in candidates}
    largest_inside: dict[tuple[str, ...], int] = {}
    for path, size in sizes.items():
        for outer in _outer(path):
            largest_inside[outer] = max(largest_inside.get(outer, 0), size)
    taken: set[tuple[str, ...]] = set()
    for found in candidates:
        holds_larger = largest_inside.get(found.path, 0) > sizes[found.path]
        if not holds_larger and taken.isdisjoint(_outer(found.path)):
            taken.add(found.path)
    return [found for found in candidates if found.path in taken]


def choose(root: object, where: str, key: str | None) -> StateDict:
    """Pick the state dict to work on.

    Args:
        root: what the file holds.
        where: the file, for messages.
        key: the one the user names; None to go by the usual names, shallow before deep.

    Returns:
        The state dict; never an average of the weights unless `key` says so.

    Raises:
        CheckpointError: there is none, several are equally likely, only averages are there, or `key` leads to none.
    """
    candidates = state_dicts(root)
    names = ", ".join(repr(shown(found.key)) for found in candidates[:_MOST_SHOWN])
    if key is not None:
        return _named(root, where, key, names)
    if not candidates:
        raise CheckpointError(
            where=where,
            found="no state dict (names to tensors, at least one of them a floating-point matrix)",
            why="there is nothing to work on",
            action="Save one: torch.save(model.state_dict(), ...).",
        )
    current = [found for found in candidates if not any(is_averaged(name) for name in found.path)]
    if not current:
        raise CheckpointError(
            where=where,
            found=f"only averaged weights: {names}",
            why="averages over training are not taken unasked",
            action="If they are meant, choose them by their key.",
        )
    usual = sorted((found for found in current if not found.path or found.path[-1] in PREFERRED), key=_preference)
    if usual and (len(usual) == 1 or _preference(usual[0]) < _preference(usual[1])):
        return usual[0]
    if len(current) == 1:
        return current[0]
    raise CheckpointError(
        where=where,
        found=f"several state dicts: {names}",
        why="it cannot be told which one is meant",
        action="Choose one by its key.",
    )


def resolve(root: object, key: str) -> tuple[str, ...] | None:
    """Find the path a dotted key means, where the keys of the file may hold dots themselves.

    Args:
        root: where to start from.
        key: the dotted key; "" is the top.

    Returns:
        The path, or None if nothing is there.

    Example:
        >>> resolve({"a.b": [{}, {"c": {}}]}, "a.b.1.c"), resolve({"a": 1}, "b")
        (('a.b', '1', 'c'), None)
    """
    path: list[str] = []
    place = root
    rest = key
    while rest:
        inside = named_children(place)
        name = next((name for name in _prefixes(rest) if name in inside), None)
        if name is None:
            return None
        path.append(name)
        place = inside[name]
        rest = rest[len(name) + 1 :]
    return tuple(path)


def named_children(value: object) -> Mapping[Any, Any]:
    """Give what a container or object holds, by name.

    Args:
        value: a dict, a list or tuple (entries by number), an object (what it was made of by number, its attributes and
            items), or anything else.

    Returns:
        Name -> value; the dict itself where it is one; empty for what holds nothing.

    Example:
        >>> named_children(("a", "b"))
        {'0': 'a', '1': 'b'}
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return {str(number): entry for number, entry in enumerate(value)}
    if not isinstance(value, Instance):
        return {}
    listed = {str(number): entry for number, entry in enumerate((*value.arguments, *value.entries))}
    return {**listed, **value.attributes, **value.items}


def _named(root: object, where: str, key: str, names: str) -> StateDict:
    path = resolve(root, key)
    value = root
    for name in path or ():
        value = named_children(value)[name]
    found = None if path is None else _as_state(path, value)
    if found is None or not any(isinstance(entry, torch.Tensor) for entry in found.value.values()):
        raise CheckpointError(
            where=where,
            found=f"no dict of tensors at key {shown(key)!r}",
            why="there is nothing to work on",
            action=f"Choose one of: {names}." if names else "Name a file that holds a state dict.",
        )
    return found


def _as_state(path: tuple[str, ...], value: object) -> StateDict | None:
    """What a value would be as a state dict; None for what is neither dict nor object."""
    if is_module(value):
        state = module_state(value)
        return StateDict(path=path, value=state.tensors, classes=state.classes)
    if isinstance(value, dict):
        return StateDict(path=path, value=value)
    return StateDict(path=path, value=dict(named_children(value))) if isinstance(value, Instance) else None


def _prefixes(key: str) -> Iterator[str]:
    """Yield the key and its dotted beginnings, longest first."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def _outer(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (path[:depth] for depth in range(len(path)))


def _dicts(root: object) -> list[StateDict]:
    found: list[StateDict] = []
    seen = {id(root)}
    queue: list[tuple[tuple[str, ...], object]] = [((), root)]
    for path, value in queue:  # grows while it is walked
        state = _as_state(path, value)
        if state is not None:
            found.append(state)
        if is_module(value) or len(path) == MAX_DEPTH:
            continue  # the state dict of a module has all there is
        for name, inner in named_children(value).items():
            if isinstance(name, str) and name and isinstance(inner, _HOLDERS) and id(inner) not in seen:
                seen.add(id(inner))
                queue.append(((*path, name), inner))
    return found


def _parameters(value: dict[Any, Any]) -> int:
    return sum(entry.numel() for entry in value.values() if isinstance(entry, torch.Tensor) and is_dense(entry))


def _preference(found: StateDict) -> tuple[int, int]:
    return len(found.path), PREFERRED.index(found.path[-1]) if found.path else 0

"""Find the state dict in a file; a whole module counts as its state dict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpocompress.checkpoint.contents.modules import is_module, module_state
from mpocompress.checkpoint.contents.structure import MAX_DEPTH
from mpocompress.checkpoint.lazy_tensors import AnyLazyTensor, LazyTensor
from mpocompress.checkpoint.pickles.values import Instance
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

PREFERRED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
_AVERAGED = {"ema", "swa", "polyak", "averaged", "average", "avg", "shadow"}
_WORD = re.compile(r"[a-z]+")
_MOST_SHOWN = 20
_NESTED = (dict, list, tuple, Instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDict:
    """A dict of tensors in a file.

    Args:
        path: keys, positions in lists, and names of attributes that lead to it from the top.
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

    Example:
        >>> is_averaged("model_ema"), is_averaged("schema")
        (True, False)
    """
    return not _AVERAGED.isdisjoint(_WORD.findall(name.lower()))


def is_weight(value: object) -> bool:
    """Tell whether a value is a dense floating-point tensor with two dimensions or more."""
    return isinstance(value, LazyTensor) and value.dtype.is_floating_point and len(value.shape) >= 2


def state_dicts(root: object) -> list[StateDict]:
    """Find the state dicts in a file: dicts that hold a weight (see `is_weight`).

    Of nested ones the outer counts, unless an inner one holds more parameters (a training checkpoint with a stray
    tensor beside its state dict).

    Args:
        root: the value in the file, checked by `check_structure`.

    Returns:
        The candidates, shallow before deep, then in file order.

    Example:
        >>> import torch
        >>> from mpocompress.checkpoint.tensors import describe
        >>> [state.key for state in state_dicts(describe({"epoch": 3, "model": {"fc.weight": torch.ones(2, 2)}}))]
        ['model']
    """
    candidates = [state for state in _dicts(root) if any(map(is_weight, state.value.values()))]
    sizes = {state.path: _parameters(state.value) for state in candidates}
    largest_inside: dict[tuple[str, ...], int] = {}
    for path, size in sizes.items():
        for outer in _outer(path):
            largest_inside[outer] = max(largest_inside.get(outer, 0), size)
    chosen: set[tuple[str, ...]] = set()
    for state in candidates:
        holds_larger = largest_inside.get(state.path, 0) > sizes[state.path]
        if not holds_larger and chosen.isdisjoint(_outer(state.path)):
            chosen.add(state.path)
    return [state for state in candidates if state.path in chosen]


def choose_state_dict(root: object, where: str, key: str | None) -> StateDict:
    """Return the state dict to use.

    Args:
        root: the value in the file.
        where: the file, for messages.
        key: the key that the user gave; None to choose by the usual names, shallow before deep.

    Returns:
        The state dict; an average of the weights only if `key` names it.

    Raises:
        CheckpointError: there is none, several are equally likely, all are averages, or `key` leads to none.
    """
    candidates = state_dicts(root)
    names = ", ".join(repr(shown(state.key)) for state in candidates[:_MOST_SHOWN])
    if key is not None:
        return _named(root, where, key, names)
    if not candidates:
        raise CheckpointError(
            where=where,
            found="no state dict (names -> tensors, at least one of them a floating-point matrix)",
            why="the file has no weights to read",
            action="Save a state dict: torch.save(model.state_dict(), ...).",
        )
    current = [state for state in candidates if not any(is_averaged(name) for name in state.path)]
    if not current:
        raise CheckpointError(
            where=where,
            found=f"only averaged weights: {names}",
            why="averages over training are not chosen automatically",
            action="To use them, give their key.",
        )
    usual = sorted((state for state in current if not state.path or state.path[-1] in PREFERRED), key=_preference)
    if usual and (len(usual) == 1 or _preference(usual[0]) < _preference(usual[1])):
        return usual[0]
    if len(current) == 1:
        return current[0]
    raise CheckpointError(
        where=where,
        found=f"several state dicts: {names}",
        why="the choice between them is ambiguous",
        action="Choose one by its key.",
    )


def resolve(root: object, key: str) -> tuple[str, ...] | None:
    """Return the path that a dotted key means, where the keys of the file may contain dots themselves.

    Args:
        root: where to start from.
        key: the dotted key; "" is the top.

    Returns:
        The path, or None if it leads nowhere.

    Example:
        >>> resolve({"a.b": [{}, {"c": {}}]}, "a.b.1.c"), resolve({"a": 1}, "b")
        (('a.b', '1', 'c'), None)
    """
    path: list[str] = []
    value = root
    rest = key
    while rest:
        children = named_children(value)
        name = next((name for name in _prefixes(rest) if name in children), None)
        if name is None:
            return None
        path.append(name)
        value = children[name]
        rest = rest[len(name) + 1 :]
    return tuple(path)


def named_children(value: object) -> Mapping[Any, Any]:
    """Return the content of a container or object by name.

    Args:
        value: a dict, a list or tuple (entries by number), an object (its arguments and entries by number, its
            attributes and items), or anything else.

    Returns:
        Name -> value; a dict itself; empty for other values.

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
    numbered = {str(number): entry for number, entry in enumerate((*value.arguments, *value.entries))}
    return {**numbered, **value.attributes, **value.items}


def _named(root: object, where: str, key: str, names: str) -> StateDict:
    path = resolve(root, key)
    value = root
    for name in path or ():
        value = named_children(value)[name]
    state = None if path is None else _as_state(path, value)
    if state is None or not any(isinstance(entry, AnyLazyTensor) for entry in state.value.values()):
        raise CheckpointError(
            where=where,
            found=f"no dict of tensors at key {shown(key)!r}",
            why="the file has no weights to read there",
            action=f"Choose one of: {names}." if names else "Give a file that holds a state dict.",
        )
    return state


def _as_state(path: tuple[str, ...], value: object) -> StateDict | None:
    """A value as a state dict; None if it is neither dict nor object."""
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
    states: list[StateDict] = []
    seen = {id(root)}
    queue: list[tuple[tuple[str, ...], object]] = [((), root)]
    for path, value in queue:  # grows during the loop
        state = _as_state(path, value)
        if state is not None:
            states.append(state)
        if is_module(value) or len(path) == MAX_DEPTH:
            continue  # the state dict of a module includes those of the modules in it
        for name, inner in named_children(value).items():
            if isinstance(name, str) and name and isinstance(inner, _NESTED) and id(inner) not in seen:
                seen.add(id(inner))
                queue.append(((*path, name), inner))
    return states


def _parameters(value: dict[Any, Any]) -> int:
    return sum(entry.numel for entry in value.values() if isinstance(entry, LazyTensor))


def _preference(state: StateDict) -> tuple[int, int]:
    return len(state.path), PREFERRED.index(state.path[-1]) if state.path else 0

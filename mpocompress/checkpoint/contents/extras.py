"""What a file holds beside its tensors: taken out with a word on what is dropped, and put back in its place."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mpocompress.checkpoint.contents.modules import class_name
from mpocompress.checkpoint.contents.nesting import (
    StateDict,
    is_averaged,
    is_weight,
    named_children,
    resolve,
    state_dicts,
)
from mpocompress.checkpoint.contents.structure import (
    MAX_DEPTH,
    NOTHING,
    emptied,
    is_dense,
    is_plain_key,
    leaves,
    plain_part,
    tensor_bytes,
    tensors_in,
)
from mpocompress.checkpoint.pickles.values import Instance
from mpocompress.errors import OutputError
from mpocompress.text import shown, shown_size

_OPTIMIZER = re.compile(r"(?<![a-z])optim(i[sz]ers?|s)?(?![a-z])")
_MOST = 10
"""Values of one entry that are named in notes one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A file taken apart.

    Args:
        tensors: the tensors of the state dict, in order.
        extras: the rest, in its own nesting (tuples as lists, objects as dicts of what is taken from them); where the
            state dict was, a dict of its entries that are no tensors.
        notes: one sentence for everything dropped, and for every tensor carried over outside the state dict.
    """

    tensors: Mapping[str, torch.Tensor]
    extras: dict[Any, Any] | list[Any]
    notes: tuple[str, ...]


def split(root: object, state: StateDict) -> Split:
    """Take a file apart into the tensors of its state dict and the rest worth keeping.

    Optimizer, scheduler and gradient-scaler state, further copies of the same weights, and what a plain file cannot
    hold are dropped, each with a note.

    Args:
        root: what the file holds; left as it is.
        state: the state dict in it.

    Returns:
        The parts; values are shared with `root`, the dicts on the way to the state dict are copies.

    Example:
        >>> sd = {"fc.weight": torch.ones(2, 2)}
        >>> adam = {"state": {}, "param_groups": []}
        >>> parts = split({"net": sd, "epoch": 3, "adam": adam}, StateDict(path=("net",), value=sd))
        >>> parts.extras, parts.notes
        ({'net': {}, 'epoch': 3}, ('adam: optimizer state is not carried over',))
    """
    notes: list[str] = []
    tensors = {name: value for name, value in state.value.items() if _is_entry(name, value)}
    places = [root]
    for name in state.path:
        places.append(named_children(places[-1])[name])
    rest = {name: value for name, value in state.value.items() if name not in tensors}
    if isinstance(places[-1], Instance):
        notes.append(_of_object(places[-1], ".".join(state.path), "its weights are taken"))
    kept = _all_kept(rest, state.path, state, notes)
    inner: Any = emptied(places[-1]) if isinstance(places[-1], dict) else {}
    inner.update(kept)
    for depth in range(len(state.path) - 1, -1, -1):
        inner = _around(places[depth], state.path[: depth + 1], inner, state, notes)
    return Split(tensors=tensors, extras=inner, notes=tuple(notes))


def _around(place: object, path: tuple[str, ...], inner: Any, state: StateDict, notes: list[str]) -> Any:
    """What is kept of the container that holds `inner` at the end of `path`."""
    if isinstance(place, Instance):
        notes.append(_of_object(place, ".".join(path[:-1]), f"its {shown(path[-1])} is taken"))
        return {path[-1]: inner}
    beside = {name: value for name, value in named_children(place).items() if name != path[-1]}
    kept = _all_kept(beside, path[:-1], state, notes)
    if isinstance(place, dict):
        outer = emptied(place)
        kept[path[-1]] = inner
        outer.update((name, kept[name]) for name in place if name in kept)
        return outer
    return [inner if str(n) == path[-1] else kept.get(str(n)) for n in range(len(named_children(place)))]


def _all_kept(entries: Mapping[Any, Any], path: tuple[str, ...], state: StateDict, notes: list[str]) -> dict[Any, Any]:
    kept: dict[Any, Any] = {}
    for name, value in entries.items():
        if not is_plain_key(name):
            notes.append(
                f"{shown('.'.join(path)) or 'the file'}: an entry whose key is no plain value is not carried over"
            )
        elif (part := _kept((*path, name), value, state, notes)) is not NOTHING:
            kept[name] = part
    return kept


def _of_object(value: Instance, key: str, taken: str) -> str:
    what = f"{shown(key) or 'the file'} is an object of class {shown(class_name(value))}"
    return f"{what}: {taken}, the rest is not carried over"


def state_extras(extras: Mapping[str, object] | list[object], key: str) -> Mapping[str, object]:
    """Give the entries of a state dict that are no tensors.

    Args:
        extras: as a `Checkpoint` gives them.
        key: where the state dict belongs.

    Returns:
        Name -> value; empty where nothing is kept there.

    Example:
        >>> state_extras({"epoch": 3, "model": {"fc._extra_state": 7}}, "model")
        {'fc._extra_state': 7}
    """
    path = resolve(extras, key)
    place: object = extras if path is not None else {}
    for name in path or ():
        place = named_children(place)[name]
    return {name: value for name, value in named_children(place).items() if isinstance(name, str)}


def restore(
    extras: Mapping[str, object] | list[object], key: str, state: Mapping[str, object], where: str
) -> dict[Any, Any] | list[Any]:
    """Put a state dict back into the nesting it came from.

    Args:
        extras: as a `Checkpoint` gives them.
        key: where the state dict belongs.
        state: its tensors.
        where: the output, for messages.

    Returns:
        A new dict or list, tensors before the other entries of the state dict; `extras` is left as it is.

    Raises:
        OutputError: `extras` holds something else where the state dict belongs.

    Example:
        >>> restore({"epoch": 3}, "model", {"fc.bias": 0}, "out.pt")
        {'epoch': 3, 'model': {'fc.bias': 0}}
    """
    path = resolve(extras, key)
    if path is None:
        path = tuple(key.split(".", MAX_DEPTH))
    places: list[Any] = [extras if isinstance(extras, dict | list) else dict(extras)]
    for name in path:
        places.append(named_children(places[-1]).get(name, {}))
        if not isinstance(places[-1], dict | list):
            raise _no_place(where, key, name, places[-1])
    if isinstance(places[-1], list):
        raise _no_place(where, key, path[-1] if path else "", places[-1])
    inner: dict[Any, Any] = copy.copy(places[-1])  # keeps the type, and the `_metadata` of an OrderedDict
    inner.clear()
    inner.update(state)
    inner.update((name, value) for name, value in places[-1].items() if name not in state)
    for place, name in zip(reversed(places[:-1]), reversed(path), strict=True):
        outer = copy.copy(place)
        if isinstance(outer, list):
            if not name.isdecimal() or int(name) >= len(outer):
                raise _no_place(where, key, name, None)
            outer[int(name)] = inner
        else:
            outer[name] = inner
        inner = outer
    return inner


def _no_place(where: str, key: str, name: str, value: object) -> OutputError:
    return OutputError(
        where=where,
        found=f"{shown(name)!r} in {shown(key)!r} is a {type(value).__name__}",
        why="the state dict cannot be put there",
        action="Give the key the state dict was read from.",
    )


def holds_anything(value: object) -> bool:
    """Tell whether there is any value in nested dicts, empty dicts aside.

    Args:
        value: extras, or an entry of them.

    Returns:
        False for dicts of empty dicts only.

    Example:
        >>> holds_anything({"model": {}}), holds_anything({"epoch": 0})
        (False, True)
    """
    return any(True for _ in leaves(value))


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and is_dense(value)


def _kept(path: tuple[object, ...], value: object, state: StateDict, notes: list[str]) -> object:
    """What is kept of one entry beside the tensors, `NOTHING` at all or part of it; says what the user should know."""
    name = shown(".".join(str(part) for part in path))
    reason = _drop_reason(str(path[-1]), value, state)
    if reason:
        size_bytes = tensor_bytes(value)
        size = f" ({shown_size(size_bytes)})" if size_bytes else ""
        notes.append(f"{name}: {reason}{size} is not carried over")
        return NOTHING
    for copied in _copies(value, state):
        value = _without(value, copied.path)
        size = shown_size(tensor_bytes(copied.value))
        notes.append(f"{name}.{shown(copied.key)}: another copy of the weights ({size}) is not carried over")
    kept, left_out = plain_part(value, ".".join(str(part) for part in path))
    notes += [f"{shown(place)}: a value of type {shown(kind)} is not carried over" for place, kind in left_out[:_MOST]]
    if len(left_out) > _MOST:
        notes.append(f"{name}: {len(left_out) - _MOST:,} more values in it are not carried over")
    if next(tensors_in(kept), None) is not None:
        size = shown_size(tensor_bytes(kept))
        notes.append(f"{name}: {size} of tensors are carried over as they are")
    return kept


def _copies(value: object, state: StateDict) -> list[StateDict]:
    """The dicts in a value that hold the same names as the state dict."""
    return [found for found in state_dicts(value) if found.value.keys() == state.value.keys()]


def other_models(root: object, chosen: StateDict) -> list[str]:
    """Name the state dicts of a file that hold neither the chosen weights, nor a copy or the training state of them.

    Args:
        root: what the file holds.
        chosen: the state dict that was chosen.

    Returns:
        Their keys.

    Example:
        >>> weights = {"w": torch.ones(2, 2)}
        >>> root = {"model": weights, "critic": {"v": torch.ones(3, 3)}}
        >>> other_models(root, StateDict(path=("model",), value=weights))
        ['critic']
    """
    return [
        found.key
        for found in state_dicts(root)
        if found.path != chosen.path
        and not any(is_averaged(name) or _OPTIMIZER.search(name.lower()) for name in found.path)
        and not _resembles(found.value, chosen)
    ]


def _without(value: Any, path: tuple[str, ...]) -> Any:
    """A copy of nested containers without what stands at a path; None in its place in lists, and for objects."""
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied[path[0]] = _without(value[path[0]], path[1:]) if path[1:] else None
        return copied
    if isinstance(value, list | tuple):
        entries: list[Any] = list(value)
        entries[int(path[0])] = _without(value[int(path[0])], path[1:]) if path[1:] else None
        return entries
    return value  # an object is not carried over in any case


def _drop_reason(name: str, value: object, state: StateDict) -> str | None:
    holds_weights = any(is_weight(tensor) for tensor in tensors_in(value))
    if _all_are(value, _is_optimizer) or (holds_weights and _OPTIMIZER.search(name.lower())):
        return "optimizer state"
    if _all_are(value, _is_scheduler):
        return "scheduler state"
    if _all_are(value, _is_scaler):
        return "gradient scaler state"
    if holds_weights and is_averaged(name) and _resembles(value, state):
        return "an averaged copy of the weights"
    return "another copy of the weights" if any(not found.path for found in _copies(value, state)) else None


def _resembles(value: object, state: StateDict) -> bool:
    """Whether weights are those of the state dict, under other prefixes or without names."""
    for found in state_dicts(value):
        for name in found.value:
            parts = str(name).split(".")
            if any(".".join(parts[start:]) in state.value for start in range(len(parts))):
                return True
    shapes = {tensor.shape for tensor in state.value.values() if isinstance(tensor, torch.Tensor)}
    return isinstance(value, dict | list | tuple) and any(
        isinstance(part, list | tuple) and part and all(isinstance(t, torch.Tensor) and t.shape in shapes for t in part)
        for part in (value, *named_children(value).values())
    )


def _all_are(value: object, test: Callable[[dict[Any, Any]], bool]) -> bool:
    if isinstance(value, dict) and test(value):
        return True
    inner = list(value.values()) if isinstance(value, dict) else value
    return isinstance(inner, list | tuple) and bool(inner) and all(isinstance(v, dict) and test(v) for v in inner)


def _is_optimizer(value: dict[Any, Any]) -> bool:
    return value.keys() >= {"state", "param_groups"}


def _is_scheduler(value: dict[Any, Any]) -> bool:
    return "last_epoch" in value and not value.keys().isdisjoint({"_step_count", "base_lrs", "_last_lr"})


def _is_scaler(value: dict[Any, Any]) -> bool:
    return value.keys() >= {"scale", "growth_factor"}

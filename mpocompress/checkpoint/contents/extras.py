"""Split a file into its tensors and the rest, with a note on everything dropped; restore the nesting."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpocompress.checkpoint.contents.modules import class_name
from mpocompress.checkpoint.contents.state_dict_search import (
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
    is_plain_key,
    leaves,
    plain_part,
    tensor_bytes,
    tensors_in,
)
from mpocompress.checkpoint.lazy_tensors import AnyLazyTensor, LazyTensor
from mpocompress.checkpoint.pickles.values import Instance
from mpocompress.errors import OutputError
from mpocompress.text import shown, shown_size

_OPTIMIZER = re.compile(r"(?<![a-z])optim(i[sz]ers?|s)?(?![a-z])")
_MOST_NOTES = 10
"""Number of dropped values of one entry that get a note each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The parts of a file.

    Args:
        tensors: the tensors of the state dict, in order.
        extras: the rest, in its own nesting (tuples as lists, objects as dicts of the parts that are used); at the
            position of the state dict, a dict of its entries that are no tensors.
        notes: one sentence for everything dropped, and for every tensor carried over outside the state dict.
    """

    tensors: Mapping[str, LazyTensor]
    extras: dict[Any, Any] | list[Any]
    notes: tuple[str, ...]


def split(root: object, state: StateDict) -> Split:
    """Split a file into the tensors of its state dict and the rest.

    Optimizer, scheduler and gradient-scaler state, further copies of the same weights, and values that a plain file
    cannot hold are dropped, each with a note.

    Args:
        root: the value in the file; not modified.
        state: the state dict in it.

    Returns:
        The parts; values are shared with `root`, the dicts on the path to the state dict are copies.

    Example:
        >>> import torch
        >>> from mpocompress.checkpoint.tensors import describe
        >>> sd = describe({"fc.weight": torch.ones(2, 2)})
        >>> adam = {"state": {}, "param_groups": []}
        >>> parts = split({"net": sd, "epoch": 3, "adam": adam}, StateDict(path=("net",), value=sd))
        >>> parts.extras, parts.notes
        ({'net': {}, 'epoch': 3}, ('adam: optimizer state is not carried over',))
    """
    notes: list[str] = []
    tensors = {name: value for name, value in state.value.items() if _is_entry(name, value)}
    containers = [root]
    for name in state.path:
        containers.append(named_children(containers[-1])[name])
    rest = {name: value for name, value in state.value.items() if name not in tensors}
    if isinstance(containers[-1], Instance):
        notes.append(_of_object(containers[-1], ".".join(state.path), "its weights are used"))
    inner: Any = emptied(containers[-1]) if isinstance(containers[-1], dict) else {}
    inner.update(_carried_entries(rest, state.path, state, notes))
    for depth in range(len(state.path) - 1, -1, -1):
        inner = _around(containers[depth], state.path[: depth + 1], inner, state, notes)
    return Split(tensors=tensors, extras=inner, notes=tuple(notes))


def _around(container: object, path: tuple[str, ...], inner: Any, state: StateDict, notes: list[str]) -> Any:
    """The part of a container that is carried over, with `inner` at the end of `path`."""
    if isinstance(container, Instance):
        notes.append(_of_object(container, ".".join(path[:-1]), f"its {shown(path[-1])} is used"))
        return {path[-1]: inner}
    beside = {name: value for name, value in named_children(container).items() if name != path[-1]}
    carried = _carried_entries(beside, path[:-1], state, notes)
    if isinstance(container, dict):
        outer = emptied(container)
        carried[path[-1]] = inner
        outer.update((name, carried[name]) for name in container if name in carried)
        return outer
    return [inner if str(n) == path[-1] else carried.get(str(n)) for n in range(len(named_children(container)))]


def _carried_entries(
    entries: Mapping[Any, Any], path: tuple[str, ...], state: StateDict, notes: list[str]
) -> dict[Any, Any]:
    carried: dict[Any, Any] = {}
    for name, value in entries.items():
        if not is_plain_key(name):
            notes.append(
                f"{shown('.'.join(path)) or 'the file'}: an entry whose key is no plain value is not carried over"
            )
        elif (part := _carried((*path, name), value, state, notes)) is not NOTHING:
            carried[name] = part
    return carried


def _of_object(value: Instance, key: str, used: str) -> str:
    subject = f"{shown(key) or 'the file'} is an object of class {shown(class_name(value))}"
    return f"{subject}: {used}, the rest is not carried over"


def state_extras(extras: Mapping[str, object] | list[object], key: str) -> Mapping[str, object]:
    """Return the entries of a state dict that are no tensors.

    Args:
        extras: extras of a `Checkpoint`.
        key: position of the state dict.

    Example:
        >>> state_extras({"epoch": 3, "model": {"fc._extra_state": 7}}, "model")
        {'fc._extra_state': 7}
    """
    path = resolve(extras, key)
    container: object = extras if path is not None else {}
    for name in path or ():
        container = named_children(container)[name]
    return {name: value for name, value in named_children(container).items() if isinstance(name, str)}


def restore(
    extras: Mapping[str, object] | list[object], key: str, state: Mapping[str, object], where: str
) -> dict[Any, Any] | list[Any]:
    """Return the nesting of a file with a state dict in it.

    Args:
        extras: extras of a `Checkpoint`; not modified.
        key: position of the state dict.
        state: the tensors.
        where: the output, for messages.

    Returns:
        A new dict or list; in the state dict, tensors come before the other entries.

    Raises:
        OutputError: `extras` holds something else at the position of the state dict.

    Example:
        >>> restore({"epoch": 3}, "model", {"fc.bias": 0}, "out.pt")
        {'epoch': 3, 'model': {'fc.bias': 0}}
    """
    path = resolve(extras, key)
    if path is None:
        path = tuple(key.split(".", MAX_DEPTH))
    containers: list[Any] = [extras if isinstance(extras, dict | list) else dict(extras)]
    for name in path:
        containers.append(named_children(containers[-1]).get(name, {}))
        if not isinstance(containers[-1], dict | list):
            raise _occupied(where, key, name, containers[-1])
    if isinstance(containers[-1], list):
        raise _occupied(where, key, path[-1] if path else "", containers[-1])
    inner: dict[Any, Any] = copy.copy(containers[-1])  # keeps the type, and the `_metadata` of an OrderedDict
    inner.clear()
    inner.update(state)
    inner.update((name, value) for name, value in containers[-1].items() if name not in state)
    for container, name in zip(reversed(containers[:-1]), reversed(path), strict=True):
        outer = copy.copy(container)
        if isinstance(outer, list):
            if not name.isdecimal() or int(name) >= len(outer):
                raise _occupied(where, key, name, None)
            outer[int(name)] = inner
        else:
            outer[name] = inner
        inner = outer
    return inner


def _occupied(where: str, key: str, name: str, value: object) -> OutputError:
    return OutputError(
        where=where,
        found=f"{shown(name)!r} in {shown(key)!r} is a {type(value).__name__}",
        why="the state dict cannot be stored there",
        action="Give the key that the state dict was read from.",
    )


def holds_anything(value: object) -> bool:
    """Tell whether nested dicts hold any value, empty dicts aside.

    Example:
        >>> holds_anything({"model": {}}), holds_anything({"epoch": 0})
        (False, True)
    """
    return any(True for _ in leaves(value))


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, LazyTensor)


def _carried(path: tuple[object, ...], value: object, state: StateDict, notes: list[str]) -> object:
    """The part of an entry beside the tensors that is carried over, `NOTHING` if none; adds notes for the user."""
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
    plain, dropped = plain_part(value, ".".join(str(part) for part in path))
    notes += [
        f"{shown(position)}: a value of type {shown(kind)} is not carried over"
        for position, kind in dropped[:_MOST_NOTES]
    ]
    if len(dropped) > _MOST_NOTES:
        notes.append(f"{name}: {len(dropped) - _MOST_NOTES:,} more values in it are not carried over")
    if next(tensors_in(plain), None) is not None:
        size = shown_size(tensor_bytes(plain))
        notes.append(f"{name}: {size} of tensors are carried over unchanged")
    return plain


def _copies(value: object, state: StateDict) -> list[StateDict]:
    """The dicts in a value that hold the same names as the state dict."""
    return [copied for copied in state_dicts(value) if copied.value.keys() == state.value.keys()]


def other_models(root: object, chosen: StateDict) -> list[str]:
    """Return the keys of further models in a file: state dicts that neither are, copy nor train the chosen weights.

    Args:
        root: the value in the file.
        chosen: the state dict that was chosen.

    Example:
        >>> import torch
        >>> from mpocompress.checkpoint.tensors import describe
        >>> weights = {"w": torch.ones(2, 2)}
        >>> root = describe({"model": weights, "critic": {"v": torch.ones(3, 3)}})
        >>> other_models(root, StateDict(path=("model",), value=root["model"]))
        ['critic']
    """
    return [
        state.key
        for state in state_dicts(root)
        if state.path != chosen.path
        and not any(is_averaged(name) or _OPTIMIZER.search(name.lower()) for name in state.path)
        and not _resembles(state.value, chosen)
    ]


def _without(value: Any, path: tuple[str, ...]) -> Any:
    """A copy of nested containers with None in place of the value at a path."""
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied[path[0]] = _without(value[path[0]], path[1:]) if path[1:] else None
        return copied
    if isinstance(value, list | tuple):
        entries: list[Any] = list(value)
        entries[int(path[0])] = _without(value[int(path[0])], path[1:]) if path[1:] else None
        return entries
    return value  # an object is never carried over


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
    return "another copy of the weights" if any(not copied.path for copied in _copies(value, state)) else None


def _resembles(value: object, state: StateDict) -> bool:
    """Whether weights are those of the state dict, under other prefixes or without names."""
    for similar in state_dicts(value):
        for name in similar.value:
            parts = str(name).split(".")
            if any(".".join(parts[start:]) in state.value for start in range(len(parts))):
                return True
    shapes = {tensor.shape for tensor in state.value.values() if isinstance(tensor, AnyLazyTensor)}
    return isinstance(value, dict | list | tuple) and any(
        isinstance(part, list | tuple)
        and part
        and all(isinstance(tensor, AnyLazyTensor) and tensor.shape in shapes for tensor in part)
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

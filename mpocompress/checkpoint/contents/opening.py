"""From what a pickle held to an open checkpoint: the state dict chosen, its tensors described, the rest put aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

import torch

from mpocompress.checkpoint.contents.extras import Split, other_models, split
from mpocompress.checkpoint.contents.nesting import choose
from mpocompress.checkpoint.contents.structure import check_structure, is_dense, leaves, plain_part, tensors_in
from mpocompress.checkpoint.opened import OpenedCheckpoint
from mpocompress.checkpoint.own_format import EXTRAS, MARK, STATE_DICT, check_document, inconsistent, own_key
from mpocompress.checkpoint.pickles.values import Instance, UnusualTensor
from mpocompress.checkpoint.protocol import Checkpoint, Place, TensorInfo
from mpocompress.errors import CheckpointError
from mpocompress.text import listed, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What a file holds: our document or None, the key of the state dict, and the parts of the file."""

    document: str | None
    key: str
    parts: Split
    classes: Mapping[str, str] = field(default_factory=dict)


def open_contents(
    root: object,
    *,
    path: Path,
    container: str,
    key: str | None,
    read: Callable[[torch.Tensor], torch.Tensor],
    close: Callable[[], None],
    classes: Mapping[str, str] = MappingProxyType({}),
    notes: tuple[str, ...] = (),
    place: Callable[[torch.Tensor], Place | None] = lambda _: None,
) -> Checkpoint:
    """Make an open checkpoint of the values in a file.

    Args:
        root: what the file holds, its tensors laid over the file.
        path: the file.
        container: the kind of file.
        key: where the state dict is; None to find it.
        read: checks the memory behind a tensor and gives the tensor as it is to be used.
        close: lets go of the file.
        classes: path -> class of the modules, where the file says it in its own way.
        notes: what the user should know first.
        place: tells where a tensor lies in the file.

    Returns:
        The open checkpoint.

    Raises:
        CheckpointError: no clear state dict, or one with tensors that cannot be kept.
        FormatError: it is marked as ours but not laid out like it.
    """
    check_structure(root, str(path))
    try:
        contents = _contents(root, str(path), key)
    except ValueError as error:  # of modules
        raise CheckpointError(
            where=str(path),
            found=str(error),
            why="no model is built like that, so the file is damaged or made to do harm",
            action="Get the model from a source you trust.",
        ) from error
    tensors = contents.parts.tensors
    infos = tensor_infos(tensors)
    return OpenedCheckpoint(
        path=path,
        container=container,
        key=contents.key,
        tensors=infos,
        extras=contents.parts.extras,
        metadata={},
        notes=(*notes, *contents.parts.notes, *_shared(tensors, infos)),
        document=contents.document,
        read=lambda name: read(tensors[name]),
        close=close,
        classes=contents.classes or classes,
        place=lambda name: place(tensors[name]),
    )


def _contents(root: object, where: str, key: str | None) -> _Contents:
    document = root.get(MARK) if isinstance(root, dict) else None
    if isinstance(root, dict) and isinstance(document, str) and STATE_DICT in root:
        check_document(document, where)
        state, extras = root[STATE_DICT], root.get(EXTRAS, {})
        if not isinstance(state, dict) or not isinstance(extras, dict | list):
            raise inconsistent(where, f"{STATE_DICT!r} or {EXTRAS!r} is no dict")
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not is_dense(value):
                raise inconsistent(where, f"entry {shown(str(name))} of {STATE_DICT!r} is no ordinary tensor")
        for place, kind in plain_part(extras, EXTRAS)[1]:
            raise inconsistent(where, f"{shown(place)} is of type {shown(kind)}")
        parts = Split(tensors=state, extras=extras, notes=())
        return _Contents(document=document, key=own_key(where, key), parts=parts)
    if not isinstance(root, dict | list | tuple | Instance):
        raise CheckpointError(
            where=where,
            found=f"a {type(root).__name__} in place of a dict of tensors",
            why="there are no names to find layers by",
            action="Save the state dict: torch.save(model.state_dict(), ...).",
        )
    found = choose(root, where, key)
    others = other_models(root, found) if key is None else []
    check_structure(found.value, where)  # once more: the first time, objects were not looked into
    for name, value in found.value.items():
        _check_entry(shown(str(name)), value, where)
    parts = split(root, found)
    if others:
        chosen = (
            f"the state dict at {shown(found.key) or 'the top'} was chosen; there are others at: {listed(others, 5)}"
        )
        parts = replace(parts, notes=(chosen, *parts.notes))
    return _Contents(document=None, key=found.key, parts=parts, classes=found.classes)


def _check_entry(name: str, value: object, where: str) -> None:
    """Refuse an entry of the state dict without which the model would not be whole."""
    if isinstance(value, torch.Tensor) and value.device.type == "meta":
        raise CheckpointError(
            where=where,
            found=f"{name} is a tensor without data (device meta)",
            why="there is nothing to compress in it",
            action="Save the model after its weights were loaded.",
        )
    unusual = next((leaf for leaf in leaves(value) if isinstance(leaf, UnusualTensor)), None)
    if unusual is not None:
        raise CheckpointError(
            where=where,
            found=f"{name} is {'' if unusual is value else 'made of '}{shown(unusual.kind)}",
            why="the model would not be whole without it, and it cannot be carried over",
            action="Compress the model as it was before, with ordinary floating-point tensors.",
        )
    if isinstance(value, Instance) and next(tensors_in(value), None) is not None:
        raise CheckpointError(
            where=where,
            found=f"{name} is an object of class {shown(value.class_name)} with tensors in it",
            why="only its own code can tell what they mean, and nothing in a file is run",
            action="Save a state dict of plain tensors.",
        )


def tensor_infos(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """Describe tensors, and tell which of them are tied.

    Args:
        tensors: name -> tensor.

    Returns:
        Name -> what is known of it without reading it.

    Example:
        >>> fc = torch.ones(2, 3)
        >>> tensor_infos({"a": fc, "b": fc, "c": fc[:1]})["b"].alias_of
        'a'
    """
    first: dict[object, str] = {}
    infos: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        size_bytes = tensor.numel() * tensor.element_size()
        alias_of = None
        if size_bytes:
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            owner = first.setdefault(place, name)
            alias_of = owner if owner != name else None
        infos[name] = TensorInfo(
            name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, size_bytes=size_bytes, alias_of=alias_of
        )
    return infos


def _shared(tensors: Mapping[str, torch.Tensor], infos: Mapping[str, TensorInfo]) -> list[str]:
    """A sentence for each tensor that shares memory with another in part: views are not tied, as aliases are."""
    spans = []
    for name, tensor in tensors.items():
        if infos[name].size_bytes and infos[name].alias_of is None:
            last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((start, start + (last + 1) * tensor.dtype.itemsize, name))
    return [
        f"{shown(before)} and {shown(name)} share memory in part: in the new file each has its own"
        for (_, end, before), (start, _, name) in pairwise(sorted(spans, key=itemgetter(0)))
        if start < end
    ]

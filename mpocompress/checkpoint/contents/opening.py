"""Build an open checkpoint from the values in a file: the state dict, its tensors, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

from mpocompress.checkpoint.checkpoint import Checkpoint, FileSource, TensorInfo
from mpocompress.checkpoint.contents.extras import Split, other_models, split
from mpocompress.checkpoint.contents.state_dict_search import choose_state_dict
from mpocompress.checkpoint.contents.structure import check_structure, leaves, plain_part, tensors_in
from mpocompress.checkpoint.lazy_tensors import AnyLazyTensor, LazyMetaTensor, LazyTensor
from mpocompress.checkpoint.own_format import EXTRAS, MARK, STATE_DICT, check_document, inconsistent, own_key
from mpocompress.checkpoint.pickles.values import Instance, UnusualTensor
from mpocompress.errors import CheckpointError
from mpocompress.text import listed, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """Content of a file: our document or None, the key of the state dict, and the parts of the file."""

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
    classes: Mapping[str, str] = MappingProxyType({}),
    notes: tuple[str, ...] = (),
) -> Checkpoint:
    """Return an open checkpoint of the values in a file.

    Args:
        root: the value in the file.
        path: the file.
        container: kind of file.
        key: position of the state dict; None to find it.
        classes: path -> class of the modules, if the file records it outside of `root`.
        notes: notes that come first.

    Raises:
        CheckpointError: no unambiguous state dict, or one with tensors that cannot be kept.
        FormatError: the file is marked as ours but not laid out like it.
    """
    check_structure(root, str(path))
    try:
        contents = _contents(root, str(path), key)
    except ValueError as error:  # of modules
        raise CheckpointError(
            where=str(path),
            found=str(error),
            why="no valid model has this structure: the file is damaged or malicious",
            action="Get the model from a source you trust.",
        ) from error
    tensors = contents.parts.tensors
    infos = tensor_infos(tensors)
    return Checkpoint(
        path=path,
        container=container,
        tensors=infos,
        source=FileSource((path,), tensors.__getitem__),
        key=contents.key,
        lazy_extras=contents.parts.extras,
        notes=(*notes, *contents.parts.notes, *_shared(tensors, infos)),
        document=contents.document,
        classes=contents.classes or classes,
    )


def _contents(root: object, where: str, key: str | None) -> _Contents:
    document = root.get(MARK) if isinstance(root, dict) else None
    if isinstance(root, dict) and isinstance(document, str) and STATE_DICT in root:
        check_document(document, where)
        state, extras = root[STATE_DICT], root.get(EXTRAS, {})
        if not isinstance(state, dict) or not isinstance(extras, dict | list):
            raise inconsistent(where, f"{STATE_DICT!r} or {EXTRAS!r} is not a dict")
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, LazyTensor):
                raise inconsistent(where, f"entry {shown(str(name))} of {STATE_DICT!r} is not an ordinary tensor")
        for position, kind in plain_part(extras, EXTRAS)[1]:
            raise inconsistent(where, f"{shown(position)} is of type {shown(kind)}")
        parts = Split(tensors=state, extras=extras, notes=())
        return _Contents(document=document, key=own_key(where, key), parts=parts)
    if not isinstance(root, dict | list | tuple | Instance):
        kind = "Tensor" if isinstance(root, AnyLazyTensor) else type(root).__name__
        raise CheckpointError(
            where=where,
            found=f"a {kind} instead of a dict of tensors",
            why="layers are found by the names of their tensors",
            action="Save the state dict: torch.save(model.state_dict(), ...).",
        )
    chosen = choose_state_dict(root, where, key)
    others = other_models(root, chosen) if key is None else []
    check_structure(chosen.value, where)  # again: the first time, objects were not visited
    for name, value in chosen.value.items():
        _check_entry(shown(str(name)), value, where)
    parts = split(root, chosen)
    if others:
        note = (
            f"the state dict at {shown(chosen.key) or 'the top'} was chosen; there are others at: {listed(others, 5)}"
        )
        parts = replace(parts, notes=(note, *parts.notes))
    return _Contents(document=None, key=chosen.key, parts=parts, classes=chosen.classes)


def _check_entry(name: str, value: object, where: str) -> None:
    """Refuse an entry of the state dict that the model needs and that cannot be kept."""
    if isinstance(value, LazyMetaTensor):
        raise CheckpointError(
            where=where,
            found=f"{name} is a tensor without data (device meta)",
            why="it has no values to compress",
            action="Save the model after its weights were loaded.",
        )
    unusual = next((leaf for leaf in leaves(value) if isinstance(leaf, UnusualTensor)), None)
    if unusual is not None:
        raise CheckpointError(
            where=where,
            found=f"{name} is {'' if unusual is value else 'made of '}{shown(unusual.kind)}",
            why="the model is incomplete without it, and it cannot be carried over",
            action="Compress the original model, with ordinary floating-point tensors.",
        )
    if isinstance(value, Instance) and next(tensors_in(value), None) is not None:
        raise CheckpointError(
            where=where,
            found=f"{name} is an object of class {shown(value.class_name)} with tensors in it",
            why="only the code of that class can interpret them, and no code from a file is run",
            action="Save a state dict of plain tensors.",
        )


def tensor_infos(tensors: Mapping[str, LazyTensor]) -> dict[str, TensorInfo]:
    """Return name, shape and dtype of tensors, and which of them are tied.

    Example:
        >>> import torch
        >>> from mpocompress.checkpoint.tensors import describe
        >>> fc = torch.ones(2, 3)
        >>> tensor_infos(describe({"a": fc, "b": fc, "c": fc[:1]}))["b"].alias_of
        'a'
    """
    owners: dict[object, str] = {}
    infos: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        alias_of = None
        if tensor.numel:
            elements = (id(tensor.storage.buffer), tensor.start, tensor.dtype, tensor.shape, tensor.stride)
            owner = owners.setdefault(elements, name)
            alias_of = owner if owner != name else None
        infos[name] = TensorInfo(name=name, shape=tensor.shape, dtype=tensor.dtype, alias_of=alias_of)
    return infos


def _shared(tensors: Mapping[str, LazyTensor], infos: Mapping[str, TensorInfo]) -> list[str]:
    """A sentence for each tensor that shares a part of its memory with another: such views are no aliases."""
    numbers: dict[int, int] = {}  # of the buffers, in file order
    spans = [
        (
            numbers.setdefault(id(tensor.storage.buffer), len(numbers)),
            tensor.start,
            tensor.start + tensor.span_bytes,
            name,
        )
        for name, tensor in tensors.items()
        if tensor.numel and infos[name].alias_of is None
    ]
    neighbours = pairwise(sorted(spans, key=itemgetter(0, 1)))
    return [
        f"{shown(before)} and {shown(name)} share memory in part: in the new file each has its own"
        for (number, _, end, before), (next_number, start, _, name) in neighbours
        if number == next_number and start < end
    ]

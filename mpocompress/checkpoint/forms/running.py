"""Loading a pickle the ordinary way, which runs the code it names: only ever when the user allows it."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.contents.structure import is_dense
from mpocompress.checkpoint.pickles.values import Instance, UnusualTensor
from mpocompress.checkpoint.protocol import PICKLE, TORCH_LEGACY, TORCH_ZIP, Checkpoint
from mpocompress.checkpoint.sniff import Form
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

CONTAINERS = {Form.TORCH_ZIP: TORCH_ZIP, Form.LEGACY_TORCH: TORCH_LEGACY, Form.PICKLE: PICKLE}
"""The forms that can hold code to run, and what they are called in a report."""


def open_by_running(path: Path, key: str | None, form: Form) -> Checkpoint:
    """Open a pickle by running it; all of it is read into memory.

    Args:
        path: a file of a form in `CONTAINERS`.
        key: where the state dict is; None to find it.
        form: which form it is.

    Returns:
        The open checkpoint; its first note says that code was run.

    Raises:
        CheckpointError: its code failed, or there is no clear state dict.
    """
    try:
        with path.open("rb") as stream:
            if form is Form.PICKLE:
                loaded = pickle.load(stream)
            else:
                loaded = torch.load(stream, map_location="cpu", weights_only=False)
        root = _described(loaded, {})
    except Exception as error:  # it is foreign code
        raise CheckpointError(
            where=str(path),
            found=f"running it failed ({type(error).__name__}: {shown(str(error))})",
            why="its objects are made by code that it only names",
            action="Run this where that code can be imported, with the versions the file was saved with.",
        ) from error
    note = "the file was loaded by running the code it names, as allowed"
    return open_contents(
        root,
        path=path,
        container=CONTAINERS[form],
        key=key,
        read=torch.Tensor.detach,
        close=lambda: None,
        notes=(note,),
    )


def _described(value: Any, seen: dict[int, object]) -> object:
    """Objects as the inert reader would give them, so that all that follows is the same."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, torch.Tensor):
        known = is_dense(value) or value.is_meta or value.layout is torch.sparse_coo
        return value if known else UnusualTensor(kind=f"a tensor of class {type(value).__name__}, {value.layout}")
    if not (isinstance(value, dict | list | tuple) or hasattr(value, "__dict__")):
        return value
    if isinstance(value, type) or (callable(value) and not isinstance(value, torch.nn.Module)):
        return value
    if type(value) is tuple:
        return tuple(_described(inner, seen) for inner in value)
    if type(value) is list:
        entries: list[object] = []
        seen[id(value)] = entries
        entries.extend(_described(inner, seen) for inner in value)
        return entries
    if isinstance(value, dict):
        items: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        seen[id(value)] = items
        items.update((name, _described(inner, seen)) for name, inner in value.items())
        if isinstance(items, OrderedDict):
            vars(items).update((name, _described(inner, seen)) for name, inner in vars(value).items())
        return items
    made = Instance(f"{type(value).__module__}.{type(value).__qualname__}")
    seen[id(value)] = made
    made.attributes.update((name, _described(inner, seen)) for name, inner in vars(value).items())
    return made

"""Load a pickle with torch or pickle, which runs the code it names: only if the user allows it."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from mpocompress.checkpoint.checkpoint import PICKLE, TORCH_LEGACY, TORCH_ZIP, Checkpoint
from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.pickles.values import Instance, UnusualTensor
from mpocompress.checkpoint.sniff import Form
from mpocompress.checkpoint.tensors import describe, describe_tensor
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

_CONTAINERS = {Form.TORCH_ZIP: TORCH_ZIP, Form.LEGACY_TORCH: TORCH_LEGACY, Form.PICKLE: PICKLE}


def open_by_running(path: Path, key: str | None, form: Form) -> Checkpoint:
    """Open a pickle by running it; the whole file is read into memory.

    Args:
        path: a torch zip, a one-stream file or a bare pickle.
        key: position of the state dict; None to find it.
        form: form of the file.

    Returns:
        The open checkpoint; its first note says that code was run.

    Raises:
        CheckpointError: its code failed, or there is no unambiguous state dict.
    """
    try:
        with path.open("rb") as stream:
            if form is Form.PICKLE:
                loaded = pickle.load(stream)
            else:
                loaded = torch.load(stream, map_location="cpu", weights_only=False)
        root = _described(loaded, {})
    except Exception as error:  # raised by code of others
        raise CheckpointError(
            where=str(path),
            found=f"running it failed ({type(error).__name__}: {shown(str(error))})",
            why="its objects are built by code that the file only names",
            action="Load it where that code can be imported, with the versions with which it was saved.",
        ) from error
    note = "the file was loaded by running the code that it names, as requested"
    return open_contents(root, path=path, container=_CONTAINERS[form], key=key, notes=(note,))


def _described(value: Any, seen: dict[int, object]) -> object:
    """Values as the readers that run no code return them: objects as data, tensors described."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, torch.Tensor):
        unusual = UnusualTensor(kind=f"a tensor of class {type(value).__name__}, {value.layout}")
        seen[id(value)] = describe_tensor(value) or unusual
        return seen[id(value)]
    if not (isinstance(value, dict | list | tuple) or hasattr(value, "__dict__")):
        return describe(value)
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
        items.update((describe(name), _described(inner, seen)) for name, inner in value.items())
        if isinstance(items, OrderedDict):
            vars(items).update((name, _described(inner, seen)) for name, inner in vars(value).items())
        return items
    if isinstance(value, tuple):  # a torch.Size, or a named tuple
        return describe(value) if isinstance(value, torch.Size) else Instance(_class(value), tuple(value))
    instance = Instance(_class(value))
    seen[id(value)] = instance
    instance.attributes.update((name, _described(inner, seen)) for name, inner in vars(value).items())
    return instance


def _class(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"

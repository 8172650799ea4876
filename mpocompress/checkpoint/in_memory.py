"""A state dict in memory as an open checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch

from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo, TensorSource
from mpocompress.checkpoint.contents.opening import tensor_infos
from mpocompress.checkpoint.contents.structure import NOTHING, plain_part
from mpocompress.checkpoint.lazy_tensors import LazyTensor
from mpocompress.checkpoint.tensors import describe, make_tensor
from mpocompress.checkpoint.writing.deterministic import packed
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

MEMORY = "memory"
"""The container of a state dict that is in no file."""


def open_state(
    tensors: Mapping[str, torch.Tensor],
    *,
    name: str,
    classes: Mapping[str, str],
    entries: Mapping[str, object] = MappingProxyType({}),
) -> Checkpoint:
    """Return a state dict as an open checkpoint.

    Args:
        tensors: name -> tensor, on any device; not copied.
        name: name of the checkpoint, in place of a path.
        classes: module path -> full name of its class.
        entries: entries of the state dict that are no tensors.

    Returns:
        The checkpoint. A tensor on another device is copied to the CPU whenever it is requested.

    Raises:
        CheckpointError: a tensor that no file could hold.

    Example:
        >>> state = open_state({"fc.weight": torch.ones(2, 3)}, name="Net", classes={})
        >>> state.tensors["fc.weight"].shape, state.tensor("fc.weight").sum()
        ((2, 3), tensor(6.))
    """
    for key, tensor in tensors.items():
        if unusual := _unusual_kind(tensor):
            raise CheckpointError(
                where=shown(name),
                found=f"{shown(key)} is {unusual}",
                why="only dense tensors with data can be stored",
                action="Use a model of dense tensors with data.",
            )
    parts = {key: plain_part(describe(value), key) for key, value in entries.items()}
    lazy: dict[str, LazyTensor] = describe(dict(tensors))
    infos = tensor_infos(lazy)
    return Checkpoint(
        path=Path(name),
        container=MEMORY,
        tensors=infos,
        source=_MemorySource(lazy, infos),
        lazy_extras={key: value for key, (value, _) in parts.items() if value is not NOTHING},
        notes=tuple(
            f"{shown(position)} is not stored: a plain file cannot hold a value of type {shown(kind)}"
            for _, dropped in parts.values()
            for position, kind in dropped
        ),
        classes=classes,
    )


def _unusual_kind(tensor: torch.Tensor) -> str:
    """Description of a tensor that is not dense or has no data; empty for other tensors."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.device.type == "meta":
        return "a tensor without data (device meta)"
    if tensor.is_quantized or tensor.is_nested or tensor.layout is not torch.strided:
        return "a quantized, nested or sparse tensor"
    return ""


@final
class _MemorySource(TensorSource):
    """Tensors in memory; nothing is closed."""

    def __init__(self, tensors: Mapping[str, LazyTensor], infos: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._infos = infos
        self._sha256: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors, tied ones counted once."""
        return sum(info.size_bytes for info in self._infos.values() if info.alias_of is None)

    def find(self, name: str) -> LazyTensor:
        """Return a tensor by a name that is no alias."""
        return self._tensors[name]

    def sha256(self) -> str:
        """Return a digest of names, types, shapes and bytes: equal for equal models, on any device."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            for name, info in self._infos.items():
                head = f"{name}\0torch.{info.dtype}\0{info.shape}\0{info.alias_of or ''}\n"
                digest.update(head.encode("utf-8", "surrogatepass"))
                if info.alias_of is None:
                    tensor = packed(make_tensor(self._tensors[name]))
                    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            self._sha256 = digest.hexdigest()
        return self._sha256

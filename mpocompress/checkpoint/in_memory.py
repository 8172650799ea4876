"""A state dict in memory as an open checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from mpocompress.checkpoint.contents.opening import tensor_infos
from mpocompress.checkpoint.contents.structure import NOTHING, plain_part
from mpocompress.checkpoint.opened import OpenedCheckpoint
from mpocompress.checkpoint.protocol import Checkpoint
from mpocompress.checkpoint.writing.deterministic import packed
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

MEMORY = "memory"
"""The container of what is in no file."""


def open_state(
    tensors: Mapping[str, torch.Tensor],
    *,
    name: str,
    classes: Mapping[str, str],
    beside: Mapping[str, object] = MappingProxyType({}),
) -> Checkpoint:
    """Treat a state dict as an open checkpoint.

    Args:
        tensors: name -> tensor, on any device; not copied.
        name: what to call it.
        classes: module path -> full name of its class.
        beside: its entries that are no tensors.

    Returns:
        The checkpoint. A tensor that is on another device is copied to the CPU whenever it is asked for.

    Raises:
        CheckpointError: a tensor that no file could hold.

    Example:
        >>> state = open_state({"fc.weight": torch.ones(2, 3)}, name="Net", classes={})
        >>> state.tensors["fc.weight"].shape, state.tensor("fc.weight").sum()
        ((2, 3), tensor(6.))
    """
    odd = next((one for one, tensor in tensors.items() if _kind(tensor)), "")
    if odd:
        raise CheckpointError(
            where=shown(name),
            found=f"{shown(odd)} is no ordinary tensor but {_kind(tensors[odd])}",
            why="its values cannot be taken one by one",
            action="Use a model of dense tensors with data.",
        )
    parts = {key: plain_part(value, key) for key, value in beside.items()}
    return _State(
        tensors,
        name=name,
        classes=classes,
        extras={key: value for key, (value, _) in parts.items() if value is not NOTHING},
        notes=tuple(
            f"{shown(place)} is left out: a plain file cannot hold a value of type {shown(kind)}"
            for _, left_out in parts.values()
            for place, kind in left_out
        ),
    )


def _kind(tensor: torch.Tensor) -> str:
    """What a tensor is that is no ordinary one; empty for one that is."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.device.type == "meta":
        return "one without data (device meta)"
    if tensor.is_quantized or tensor.is_nested or tensor.layout is not torch.strided:
        return "a quantized, nested or sparse one"
    return ""


class _State(OpenedCheckpoint):
    """See `open_state`."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        name: str,
        classes: Mapping[str, str],
        extras: Mapping[str, object],
        notes: tuple[str, ...],
    ) -> None:
        infos = tensor_infos(tensors)
        super().__init__(
            path=Path(name),
            container=MEMORY,
            key="",
            tensors=infos,
            extras=extras,
            metadata={},
            notes=notes,
            document=None,
            read=lambda one: tensors[one].detach().cpu(),
            close=lambda: None,
            classes=classes,
            weights=(),
        )
        self.size_bytes = sum(info.size_bytes for info in infos.values() if info.alias_of is None)

    def sha256(self) -> str:
        """Return a digest of names, types, shapes and bytes: the same for equal models, on whatever device."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            for name, info in self.tensors.items():
                digest.update(
                    f"{name}\0{info.dtype}\0{info.shape}\0{info.alias_of or ''}\n".encode("utf-8", "surrogatepass")
                )
                if info.alias_of is None:
                    digest.update(packed(self.tensor(name)).reshape(-1).view(torch.uint8).numpy().data)
            self._sha256 = digest.hexdigest()
        return self._sha256

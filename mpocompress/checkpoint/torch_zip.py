"""Reading the zip files torch.save writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpocompress.checkpoint.extras import Split, split
from mpocompress.checkpoint.nesting import choose
from mpocompress.checkpoint.opened import OpenedCheckpoint
from mpocompress.checkpoint.own_format import EXTRAS, MARK, STATE_DICT, check_document, inconsistent, own_key
from mpocompress.checkpoint.protocol import TORCH_ZIP, Checkpoint, TensorInfo
from mpocompress.checkpoint.structure import check_structure, is_dense, tensors_in
from mpocompress.checkpoint.torch_load import load_mapped
from mpocompress.checkpoint.zip_records import ZipRecords
from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size

# A tensor may repeat its elements by stride 0 (`expand`) up to this size; beyond, it claims memory the file lacks.
MAX_REPEATED_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What an archive holds: our document or None, the key of the state dict, and the parts of the file."""

    document: str | None
    key: str
    parts: Split


def open_torch_zip(path: Path, key: str | None) -> Checkpoint:
    """Open a zip file written by torch.save, running nothing from it.

    Args:
        path: a file that `sniff` found to be a torch zip.
        key: where the state dict is; None to find it.

    Returns:
        The open checkpoint.

    Raises:
        CheckpointError: the file is damaged, holds more than plain values and tensors, or has no clear state dict.
        FormatError: it is marked as ours but not laid out like it.
    """
    records = ZipRecords(path)
    try:
        root = load_mapped(path)
        check_structure(root, str(path))
        if not isinstance(root, dict):
            raise CheckpointError(
                where=str(path),
                found=f"a {type(root).__name__} in place of a dict of tensors",
                why="there are no names to find layers by",
                action="Save the state dict: torch.save(model.state_dict(), ...).",
            )
        offsets = _locate(root, records, str(path))
        contents = _contents(root, str(path), key)
    except BaseException:
        records.close()
        raise
    tensors = contents.parts.tensors

    def read(name: str) -> torch.Tensor:
        storage = tensors[name].untyped_storage()
        if storage.nbytes():
            records.check(offsets[storage.data_ptr()])
        return tensors[name].detach()

    return OpenedCheckpoint(
        path=path,
        container=TORCH_ZIP,
        key=contents.key,
        tensors=_infos(tensors),
        extras=contents.parts.extras,
        metadata={},
        notes=contents.parts.notes,
        document=contents.document,
        read=read,
        close=records.close,
    )


def _locate(root: dict[Any, Any], records: ZipRecords, where: str) -> dict[int, int]:
    """Check what every tensor in the file claims; return storage address -> offset of its record."""
    storages: dict[int, int] = {}
    for tensor in tensors_in(root):
        if not is_dense(tensor):
            continue
        storage = tensor.untyped_storage()
        claimed = tensor.numel() * tensor.element_size()
        if claimed > max(storage.nbytes(), MAX_REPEATED_BYTES):
            raise CheckpointError(
                where=where,
                found=f"a tensor of shape {tuple(tensor.shape)} claims {shown_size(claimed)} and the file holds"
                f" {shown_size(storage.nbytes())} of it",
                why="it repeats its elements (stride 0), or the file is made to exhaust memory",
                action="If the model is yours, make that tensor contiguous and save it again.",
            )
        if storage.nbytes():
            storages[storage.data_ptr()] = storage.nbytes()
    return records.locate(storages)


def _contents(root: dict[Any, Any], where: str, key: str | None) -> _Contents:
    document = root.get(MARK)
    if isinstance(document, str) and STATE_DICT in root:
        check_document(document, where)
        state, extras = root[STATE_DICT], root.get(EXTRAS, {})
        if not isinstance(state, dict) or not isinstance(extras, dict):
            raise inconsistent(where, f"{STATE_DICT!r} or {EXTRAS!r} is no dict")
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not is_dense(value):
                raise inconsistent(where, f"entry {shown(str(name))} of {STATE_DICT!r} is no ordinary tensor")
        parts = Split(tensors=state, extras=extras, notes=())
        return _Contents(document=document, key=own_key(where, key), parts=parts)
    found = choose(root, where, key)
    parts = split(root, found)
    for name, value in found.value.items():
        if isinstance(value, torch.Tensor) and value.device.type == "meta":
            raise CheckpointError(
                where=where,
                found=f"{shown(str(name))} is a tensor without data (device meta)",
                why="there is nothing to compress in it",
                action="Save the model after its weights were loaded.",
            )
    return _Contents(document=None, key=found.key, parts=parts)


def _infos(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
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

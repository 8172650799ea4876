"""Read safetensors files: the library checks the header, tensors are views of the mapped file."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mpocompress.checkpoint.checkpoint import SAFETENSORS, Checkpoint, FileSource, TensorInfo
from mpocompress.checkpoint.dtypes import SAFETENSORS_DTYPES, DType
from mpocompress.checkpoint.lazy_tensors import LazyTensor, lay_out
from mpocompress.checkpoint.own_format import ALIASES, FILES, MARK, check_document, inconsistent, own_key
from mpocompress.checkpoint.storages import InputFile, Storage
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

_LENGTH_BYTES = 8


def open_safetensors(path: Path, key: str | None) -> Checkpoint:
    """Open a safetensors file.

    Args:
        path: a safetensors file, according to `sniff`.
        key: must be None or "" (the top); in a compressed file also `state_dict`.

    Returns:
        The open checkpoint; tensors come in the order of their data in the file, recorded aliases last.

    Raises:
        CheckpointError: the file is truncated or damaged, has a type torch lacks, or `key` names an inner dict.
        FormatError: it is marked as ours but its document or aliases are malformed.
    """
    where = str(path)
    try:
        # With framework "pt" the library would import torch.
        with safe_open(path, framework="numpy") as file:
            handle: Any = file  # its methods have no types
            header = dict(handle.metadata() or {})
            slices = {name: handle.get_slice(name) for name in handle.offset_keys()}
            dtypes = {name: _dtype(name, str(entry.get_dtype()), where) for name, entry in slices.items()}
            shapes = {name: tuple(entry.get_shape()) for name, entry in slices.items()}
        file_bytes = InputFile(path)
        with file_bytes.mapped() as content:
            starts, end = _starts(content), len(content)
        tensors = {
            name: _tensor(file_bytes, starts[name], end, dtype, shapes[name], where) for name, dtype in dtypes.items()
        }
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(where, error) from error
    infos = {name: TensorInfo(name=name, shape=shapes[name], dtype=dtype) for name, dtype in dtypes.items()}
    document = header.get(MARK)
    if document is not None:
        check_document(document, where)
        infos |= aliased(header.get(ALIASES), infos, where)
        key = own_key(where, key)
    elif key:
        raise CheckpointError(
            where=where,
            found=f"key {shown(key)!r}",
            why="a safetensors file has no inner dicts",
            action="Omit the key.",
        )
    return Checkpoint(
        path=path,
        container=SAFETENSORS,
        tensors=infos,
        source=FileSource((path,), tensors.__getitem__),
        key=key or "",
        metadata={name: text for name, text in sorted(header.items()) if name not in (MARK, ALIASES, FILES)},
        document=document,
    )


def _starts(content: mmap.mmap) -> dict[str, int]:
    """Name -> position of the first byte, from the header that the library has checked."""
    size = int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + size])
    data = _LENGTH_BYTES + size
    return {name: data + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _tensor(file: InputFile, start: int, end: int, dtype: DType, shape: tuple[int, ...], where: str) -> LazyTensor:
    size_bytes = min(math.prod(shape) * dtype.itemsize, end - start)
    storage = Storage(buffer=file, offset=start, size_bytes=size_bytes, dtype=dtype)
    stride = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    return lay_out(storage, dtype, 0, shape, stride, where)


def _dtype(name: str, code: str, where: str) -> DType:
    if code not in SAFETENSORS_DTYPES:
        raise CheckpointError(
            where=where,
            found=f"{shown(name)} has elements of type {shown(code)}",
            why="this release does not support them",
            action="Convert that tensor to a type of whole bytes, such as float16.",
        )
    return SAFETENSORS_DTYPES[code]


def aliased(text: str | None, infos: Mapping[str, TensorInfo], where: str) -> dict[str, TensorInfo]:
    """Return the aliases that a compressed checkpoint records.

    Args:
        text: JSON text of the entry, if there is one.
        infos: the stored tensors.
        where: the file, for messages.

    Raises:
        FormatError: the entry is malformed, or does not fit the tensors.

    Example:
        >>> aliased(None, {}, "small.safetensors")
        {}
    """
    try:
        targets = json.loads(text or "{}")
    except (ValueError, RecursionError):
        targets = None
    if not isinstance(targets, dict):
        raise inconsistent(where, f"{ALIASES!r} in the header is not a JSON object")
    aliases: dict[str, TensorInfo] = {}
    for name, target in targets.items():
        if name in infos or not isinstance(target, str) or target not in infos:
            raise inconsistent(where, f"alias {shown(name)} of {shown(str(target))} does not fit the tensors")
        aliases[name] = replace(infos[target], name=name, alias_of=target)
    return aliases


def _damaged(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        where=where,
        found=f"a safetensors file that cannot be decoded ({shown(str(error))})",
        why="it is truncated or damaged",
        action="Download the file again, or save the model again.",
    )

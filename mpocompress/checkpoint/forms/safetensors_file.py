"""Reading safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mpocompress.checkpoint.opened import OpenedCheckpoint
from mpocompress.checkpoint.own_format import ALIASES, FILES, MARK, check_document, inconsistent, own_key
from mpocompress.checkpoint.protocol import SAFETENSORS, Checkpoint, Place, TensorInfo
from mpocompress.checkpoint.safetensors_types import DTYPES
from mpocompress.errors import CheckpointError
from mpocompress.text import shown


def open_safetensors(path: Path, key: str | None) -> Checkpoint:
    """Open a safetensors file.

    Args:
        path: a file that `sniff` found to be safetensors.
        key: must be None or "" (the top); in a compressed file also `state_dict`.

    Returns:
        The open checkpoint; tensors come in the order of their data in the file, recorded aliases last.

    Raises:
        CheckpointError: the file is cut off or damaged, has a type torch lacks, or `key` asks for an inner dict.
        FormatError: it is marked as ours but its document or aliases are malformed.
    """
    where = str(path)
    try:
        handle: Any = safe_open(path, framework="pt", device="cpu")  # Any: its methods have no types
        header = dict(handle.metadata() or {})
        names = list(handle.offset_keys())
    except (SafetensorError, OSError) as error:
        raise _damaged(where, error) from error
    try:
        infos = {name: _info(name, handle.get_slice(name), where) for name in names}
        document = header.get(MARK)
        if document is not None:
            check_document(document, where)
            infos |= aliased(header.get(ALIASES), infos, where)
            key = own_key(where, key)
        elif key:
            raise CheckpointError(
                where=where,
                found=f"key {shown(key)!r} was asked for",
                why="a safetensors file has no inner dicts",
                action="Leave the key out.",
            )
    except BaseException:
        handle.__exit__(None, None, None)
        raise

    places = cache(partial(_places, path))

    def read(name: str) -> torch.Tensor:
        try:
            tensor: torch.Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(where, error) from error
        return tensor

    return OpenedCheckpoint(
        path=path,
        container=SAFETENSORS,
        key=key or "",
        tensors=infos,
        extras={},
        metadata={name: text for name, text in sorted(header.items()) if name not in (MARK, ALIASES, FILES)},
        notes=(),
        document=document,
        read=read,
        close=lambda: handle.__exit__(None, None, None),
        place=lambda name: places()[name],
    )


def _places(path: Path) -> dict[str, Place]:
    """Where each tensor lies, from the header that the library found to be sound."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    places = {}
    for name, entry in header.items():
        if name != "__metadata__":
            shape, start = entry["shape"], entry["data_offsets"][0]
            stride = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
            places[name] = Place(offset=8 + size + start, stride=stride, swapped=False)
    return places


def _info(name: str, tensor_slice: Any, where: str) -> TensorInfo:
    code, shape = str(tensor_slice.get_dtype()), tuple(tensor_slice.get_shape())
    if code not in DTYPES:
        raise CheckpointError(
            where=where,
            found=f"{shown(name)} has elements of type {shown(code)}",
            why="this release cannot hold them",
            action="Convert that tensor to a type of whole bytes, such as float16.",
        )
    dtype = DTYPES[code]
    return TensorInfo(name=name, shape=shape, dtype=dtype, size_bytes=math.prod(shape) * dtype.itemsize, alias_of=None)


def aliased(text: str | None, infos: Mapping[str, TensorInfo], where: str) -> dict[str, TensorInfo]:
    """Read which further names the tensors of a compressed checkpoint have.

    Args:
        text: the JSON text of the entry, if there is one.
        infos: the tensors that are stored.
        where: the file, for messages.

    Returns:
        The further names.

    Raises:
        FormatError: the entry is malformed, or does not fit the tensors.

    Example:
        >>> aliased(None, {}, "small.safetensors")
        {}
    """
    try:
        aliases = json.loads(text or "{}")
    except (ValueError, RecursionError):
        aliases = None
    if not isinstance(aliases, dict):
        raise inconsistent(where, f"{ALIASES!r} in the header is no JSON object")
    found: dict[str, TensorInfo] = {}
    for name, target in aliases.items():
        if name in infos or not isinstance(target, str) or target not in infos:
            raise inconsistent(where, f"alias {shown(name)} of {shown(str(target))} does not fit the tensors")
        found[name] = replace(infos[target], name=name, alias_of=target)
    return found


def _damaged(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        where=where,
        found=f"a safetensors file that cannot be decoded ({shown(str(error))})",
        why="it is cut off or damaged",
        action="Fetch the file again, or save the model again.",
    )

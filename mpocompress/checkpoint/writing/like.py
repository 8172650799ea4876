"""Writing a checkpoint in the form of another: that file again, byte by byte, with other values in its tensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from mpocompress.checkpoint.forms.zip_records import is_zip, renew_checksums
from mpocompress.checkpoint.protocol import Checkpoint, Place
from mpocompress.checkpoint.storages import mapped, part
from mpocompress.checkpoint.writing.atomic import replacing
from mpocompress.checkpoint.writing.writer import check_output, check_space
from mpocompress.errors import OutputError
from mpocompress.text import shown


def write_like(
    path: str | os.PathLike[str],
    *,
    original: Checkpoint,
    tensors: Mapping[str, torch.Tensor],
    overwrite: bool,
    inputs: Sequence[Path],
) -> int:
    """Write a copy of a file with the tensors of its state dict replaced; all else in it stays, and nothing is run.

    Args:
        path: the output.
        original: the file to copy, open.
        tensors: name -> dense tensor, for every tensor of its state dict that is no alias.
        overwrite: whether an existing file may be replaced.
        inputs: files being read; none may be the output.

    Returns:
        Bytes written.

    Raises:
        OutputError: the tensors are not those of the original, it is of a form whose tensors cannot be replaced where
            they lie, or the output is refused (see `check_output`).

    Example:
        >>> import tempfile
        >>> from mpocompress.checkpoint import open_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "model": {"fc.weight": torch.ones(1, 2)}}, f"{folder}/a.pt")
        ...     with open_checkpoint(f"{folder}/a.pt") as original:
        ...         size_bytes = write_like(
        ...             f"{folder}/b.pt", original=original, tensors={"fc.weight": torch.zeros(1, 2)}, overwrite=False,
        ...             inputs=[],
        ...         )
        ...     torch.load(f"{folder}/b.pt", weights_only=True)
        {'epoch': 3, 'model': {'fc.weight': tensor([[0., 0.]])}}
    """
    path = Path(path)
    check_output(path, overwrite=overwrite, inputs=[*inputs, *original.files])
    places = _places(original, tensors)
    check_space(path, original.size_bytes)
    with original.path.open("rb") as source, replacing(path) as stream:
        shutil.copyfileobj(source, stream)
        stream.flush()
        _replace(stream, places, tensors)
        if is_zip(Path(stream.name)):
            renew_checksums(Path(stream.name), [place.offset for place in places.values()])
        return stream.tell()


def _places(original: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> dict[str, Place]:
    """Where each tensor goes; refuses tensors that are not those of the original."""
    wanted = {name: info for name, info in original.tensors.items() if info.alias_of is None and info.size_bytes}
    if original.layout is not None:
        raise OutputError(
            where=str(original.path),
            found="a folder, or shards",
            why="only a single file can be given back in its own form",
            action="Expand into a folder instead: it gets the same layout.",
        )
    places: dict[str, Place] = {}
    for name, info in wanted.items():
        if name not in tensors:
            raise _other(original, f"{shown(name)} is in it and not in the compressed file")
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        if (shape, dtype) != (info.shape, info.dtype):
            raise _other(original, f"{shown(name)} is {info.shape} {info.dtype} in it and {shape} {dtype} here")
        place = original.place(name)
        if place is None:
            raise OutputError(
                where=str(original.path),
                found=f"a file of form {original.container}",
                why="its tensors cannot be replaced where they lie",
                action="Expand without an original, and put the state dict into the model.",
            )
        places[name] = place
    unknown = next((name for name in tensors if name not in original.tensors), None)
    if unknown is not None:
        raise _other(original, f"{shown(unknown)} is in the compressed file and not in it")
    return places


def _replace(stream: BinaryIO, places: Mapping[str, Place], tensors: Mapping[str, torch.Tensor]) -> None:
    file = mapped(Path(stream.name), writable=True)
    for name, place in places.items():
        tensor = tensors[name]
        extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, place.stride, strict=True))
        memory = part(file, place.offset, extent * tensor.dtype.itemsize)
        target = torch.empty(0, dtype=tensor.dtype).set_(memory, 0, tensor.shape, place.stride)
        target.copy_(_swapped(tensor) if place.swapped else tensor)


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    width = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
    as_bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).reshape(-1, width).flip(1).contiguous()
    return as_bytes.reshape(-1).view(tensor.dtype).reshape(tensor.shape)


def _other(original: Checkpoint, found: str) -> OutputError:
    return OutputError(
        where=str(original.path),
        found=found,
        why="it is not the file that was compressed, and would be left half replaced",
        action="Give the original file.",
    )

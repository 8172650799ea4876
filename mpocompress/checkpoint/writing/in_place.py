"""Writing a checkpoint in the form of another: that file again, byte by byte, with other values in its tensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import torch

from mpocompress.checkpoint.forms.zip_records import is_zip, renew_checksums
from mpocompress.checkpoint.protocol import Checkpoint, Place, TensorInfo
from mpocompress.checkpoint.storages import mapped, part, swapped
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
        _replace(stream, original, places, tensors)
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
    for name in tensors:
        if name not in original.tensors:
            raise _other(original, f"{shown(name)} is in the compressed file and not in it")
        if original.tensors[name].alias_of is not None:
            raise _other(original, f"{shown(name)} is tied to {shown(str(original.tensors[name].alias_of))} in it only")
    _check_apart(original, places)
    return places


def _check_apart(original: Checkpoint, places: Mapping[str, Place]) -> None:
    """Refuse tensors that share memory in part: the second would overwrite what was written for the first."""
    ends = {name: place.offset + _extent(original.tensors[name], place) for name, place in places.items()}
    spans = sorted(((place.offset, ends[name], name) for name, place in places.items()), key=itemgetter(0))
    for (_, end, before), (start, _, name) in pairwise(spans):
        if start < end:
            raise OutputError(
                where=str(original.path),
                found=f"{shown(before)} and {shown(name)} share memory in it",
                why="new values of one would overwrite those of the other",
                action="Expand without an original, and put the state dict into the model.",
            )


def _extent(info: TensorInfo, place: Place) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((n - 1) * step for n, step in zip(info.shape, place.stride, strict=True))
    return (last + 1) * info.dtype.itemsize


def _replace(
    stream: BinaryIO, original: Checkpoint, places: Mapping[str, Place], tensors: Mapping[str, torch.Tensor]
) -> None:
    file = mapped(Path(stream.name), writable=True)
    for name, place in places.items():
        tensor = tensors[name].detach()
        for dim, step in enumerate(place.stride):
            if step == 0:  # all entries are one in memory
                tensor = tensor.narrow(dim, 0, 1)
        memory = part(file, place.offset, _extent(original.tensors[name], place))
        target = torch.empty(0, dtype=tensor.dtype).set_(memory, 0, tensor.shape, place.stride)
        target.copy_(swapped(tensor.contiguous()) if place.swapped else tensor)


def _other(original: Checkpoint, found: str) -> OutputError:
    return OutputError(
        where=str(original.path),
        found=found,
        why="it is not the file that was compressed, and would be left half replaced",
        action="Give the original file.",
    )

"""Write a copy of a checkpoint with new values in its tensors; every other byte of the file stays the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import torch

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.forms.zip_records import is_zip, update_checksums
from mpocompress.checkpoint.lazy_tensors import LazyTensor
from mpocompress.checkpoint.tensors import byteswap, map_writable, part
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.checkpoint.writing.atomic import replacing
from mpocompress.checkpoint.writing.writer import check_output, check_space
from mpocompress.errors import OutputError
from mpocompress.text import shown


def write_replaced(
    path: str | os.PathLike[str],
    *,
    original: Checkpoint,
    tensors: Mapping[str, torch.Tensor],
    overwrite: bool,
    inputs: Sequence[Path],
) -> int:
    """Write a copy of a file with the tensors of its state dict replaced; no code from it is run.

    Args:
        path: the output.
        original: the file to copy, open.
        tensors: name -> dense tensor, for every tensor of its state dict that is no alias.
        overwrite: whether an existing file may be replaced.
        inputs: files being read; none may be the output.

    Returns:
        Bytes written.

    Raises:
        OutputError: the tensors are not those of the original, its form does not allow replacing tensors in place, or
            the output is refused (see `check_output`).

    Example:
        >>> import tempfile
        >>> from mpocompress.checkpoint.reader import open_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "model": {"fc.weight": torch.ones(1, 2)}}, f"{folder}/a.pt")
        ...     with open_checkpoint(f"{folder}/a.pt") as original:
        ...         size_bytes = write_replaced(
        ...             f"{folder}/b.pt", original=original, tensors={"fc.weight": torch.zeros(1, 2)}, overwrite=False,
        ...             inputs=[],
        ...         )
        ...     torch.load(f"{folder}/b.pt", weights_only=True)
        {'epoch': 3, 'model': {'fc.weight': tensor([[0., 0.]])}}
    """
    path = Path(path)
    check_output(path, overwrite=overwrite, inputs=[*inputs, *original.files])
    targets = _targets(original, tensors)
    check_space(path, original.size_bytes)
    with original.path.open("rb") as source, replacing(path) as stream:
        shutil.copyfileobj(source, stream)
        stream.flush()
        _replace(stream, targets, tensors)
        if is_zip(Path(stream.name)):
            update_checksums(Path(stream.name), [target.start for target in targets.values()])
        return stream.tell()


def _targets(original: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> dict[str, LazyTensor]:
    """The tensor of the file that each tensor replaces; refuses tensors that are not those of the original."""
    if original.layout is not None:
        raise OutputError(
            where=str(original.path),
            found="a folder, or shards",
            why="tensors can be replaced in a single file only",
            action="Expand into a folder instead: it gets the same layout.",
        )
    targets: dict[str, LazyTensor] = {}
    for info in original.own_tensors:
        name = info.name
        if not info.size_bytes:
            continue
        if name not in tensors:
            raise _mismatch(original, f"{shown(name)} is in it but not in the compressed file")
        shape, dtype = tuple(tensors[name].shape), dtype_of(tensors[name].dtype)
        if (shape, dtype) != (info.shape, info.dtype):
            raise _mismatch(
                original, f"{shown(name)} is {info.shape} {info.dtype} in it but {shape} {dtype} in the compressed file"
            )
        target = original.lazy_tensor(name)
        if not target.in_file:
            raise OutputError(
                where=str(original.path),
                found=f"a file of form {original.container}",
                why="its tensors cannot be replaced in place",
                action="Expand without an original, and load the state dict into the model.",
            )
        targets[name] = target
    for name in tensors:
        if name not in original.tensors:
            raise _mismatch(original, f"{shown(name)} is in the compressed file but not in it")
        if original.tensors[name].alias_of is not None:
            alias_of = shown(str(original.tensors[name].alias_of))
            raise _mismatch(original, f"{shown(name)} is tied to {alias_of} in it only")
    _check_apart(original, targets)
    return targets


def _check_apart(original: Checkpoint, targets: Mapping[str, LazyTensor]) -> None:
    """Refuse tensors that share memory in part: the values of the second would overwrite those of the first."""
    spans = sorted(
        ((target.start, target.start + target.span_bytes, name) for name, target in targets.items()), key=itemgetter(0)
    )
    for (_, end, before), (start, _, name) in pairwise(spans):
        if start < end:
            raise OutputError(
                where=str(original.path),
                found=f"{shown(before)} and {shown(name)} share memory in it",
                why="new values of one would overwrite those of the other",
                action="Expand without an original, and load the state dict into the model.",
            )


def _replace(stream: BinaryIO, targets: Mapping[str, LazyTensor], tensors: Mapping[str, torch.Tensor]) -> None:
    file = map_writable(Path(stream.name))
    for name, target in targets.items():
        tensor = tensors[name].detach()
        for dim, step in enumerate(target.stride):
            if step == 0:  # all entries are one element in the file
                tensor = tensor.narrow(dim, 0, 1)
        memory = part(file, target.start, target.span_bytes)
        view = torch.empty(0, dtype=tensor.dtype).set_(memory, 0, tensor.shape, target.stride)
        view.copy_(byteswap(tensor.contiguous()) if target.storage.swapped else tensor)


def _mismatch(original: Checkpoint, found: str) -> OutputError:
    return OutputError(
        where=str(original.path),
        found=found,
        why="it is not the file that was compressed, and the output would mix both",
        action="Give the original file.",
    )

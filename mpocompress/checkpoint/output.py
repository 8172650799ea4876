"""What the name of an output asks for, a file or a folder, and writing either."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from mpocompress.checkpoint.checkpoint import SAFETENSORS, TORCH_ZIP, Checkpoint
from mpocompress.checkpoint.folders.permission import check_apart, check_folder
from mpocompress.checkpoint.folders.writer import write_folder
from mpocompress.checkpoint.layout import Layout
from mpocompress.checkpoint.writing.safetensors_stream import check_storable
from mpocompress.checkpoint.writing.writer import check_output, left_out, write_checkpoint
from mpocompress.text import listed

FOLDER = "folder"
FILE_ENDINGS = (
    ".safetensors",
    *(".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".th", ".tar", ".pt2", ".ptl", ".zip"),
)
"""Endings that ask for a file where a folder is read; what else follows a dot is part of the name of a folder."""
_MOST_SHOWN = 12


def container_for(path: str | os.PathLike[str], layout: Layout | None = None) -> str:
    """Tell which container an output gets from its name.

    Args:
        path: the output.
        layout: the folder that was read, if it was one.

    Returns:
        `safetensors` for that ending, whatever was read. For a folder that was read, `folder` for a name with none of
        `FILE_ENDINGS`, one that ends in a slash, and a folder that exists. `torch-zip` for every other.

    Example:
        >>> container_for("small.safetensors"), container_for("small.pt"), container_for("small")
        ('safetensors', 'torch-zip', 'torch-zip')
    """
    suffix = Path(path).suffix.lower()
    if layout is not None and (suffix not in FILE_ENDINGS or str(path).endswith(("/", os.sep)) or Path(path).is_dir()):
        return FOLDER
    return SAFETENSORS if suffix == ".safetensors" else TORCH_ZIP


def check_target(path: Path, *, container: str, overwrite: bool, checkpoint: Checkpoint) -> None:
    """Refuse an output that could not or must not be written, before any work is done.

    Args:
        path: the output.
        container: as `container_for` gives it.
        overwrite: whether what is there may be replaced.
        checkpoint: what is being read.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        OutputError: it touches what is being read, cannot be written, or cannot hold a tensor that is being read.
    """
    if checkpoint.layout is not None:
        check_apart(path, folder=checkpoint.layout.folder, inputs=checkpoint.files if container == FOLDER else ())
    if container == FOLDER:
        check_folder(path, overwrite=overwrite)
    else:
        check_output(path, overwrite=overwrite, inputs=checkpoint.files)
    if container in (FOLDER, SAFETENSORS):  # what is of a rare type is never compressed, but passed through
        check_storable({name: info.dtype for name, info in checkpoint.tensors.items()}, str(path))


def write_target(
    path: Path,
    *,
    container: str,
    checkpoint: Checkpoint,
    tensors: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str],
    shards: Mapping[str, str],
    key: str,
    document: str | None,
    overwrite: bool,
) -> int:
    """Write what a checkpoint has become, as `write_checkpoint` or `write_folder` does.

    Args:
        path: the output.
        container: as `container_for` gives it.
        checkpoint: what was read; extras, header texts and the files beside the weights come from it.
        tensors: name -> dense tensor.
        aliases: further name -> name in `tensors` that it is tied to.
        shards: name -> the shard it belongs to; used for a folder only.
        key: where the state dict belongs in a dense torch file.
        document: the JSON text of our format, or None.
        overwrite: whether what is there may be replaced.

    Returns:
        Bytes written.

    Raises:
        OutputError: the output is refused, does not fit on the disk, or cannot be written.
        FormatError: the document is too large.
    """
    if container == FOLDER and checkpoint.layout is not None:
        return write_folder(
            path,
            tensors=tensors,
            aliases=aliases,
            shards=shards,
            layout=checkpoint.layout,
            metadata=checkpoint.metadata,
            document=document,
            overwrite=overwrite,
            inputs=checkpoint.files,
        )
    return write_checkpoint(
        path,
        tensors=tensors,
        aliases=aliases,
        container=container,
        key=key,
        extras=checkpoint.extras,
        metadata=checkpoint.metadata,
        document=document,
        overwrite=overwrite,
        inputs=checkpoint.files,
    )


def carried_notes(container: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say what of a checkpoint an output keeps beside its tensors, and what not.

    Args:
        container: as `container_for` gives it.
        checkpoint: what is being read.

    Returns:
        A sentence each; none where everything is kept and there was nothing to copy.
    """
    layout = checkpoint.layout
    kind = SAFETENSORS if container == FOLDER else container
    notes = []
    names = left_out(kind, extras=checkpoint.extras, metadata=checkpoint.metadata)
    if names:
        notes.append(f"left out, since a {kind} file cannot hold them: {listed(names, _MOST_SHOWN)}")
    if layout is not None and container == FOLDER:
        notes += [f"copied along unchanged: {listed(layout.companions, _MOST_SHOWN)}"] if layout.companions else []
        notes += (
            [f"not copied (only small files without weights, beside them, are): {listed(layout.ignored, _MOST_SHOWN)}"]
            if layout.ignored
            else []
        )
    elif layout is not None and layout.companions:
        notes.append(f"not in the one file that is written: {listed(layout.companions, _MOST_SHOWN)}")
    return tuple(notes)

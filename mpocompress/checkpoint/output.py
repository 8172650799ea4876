"""Choice between a file and a folder by the name of the output, and the writing of either."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mpocompress.checkpoint.checkpoint import SAFETENSORS, TORCH_ZIP, Checkpoint
from mpocompress.checkpoint.folders.overwrite_checks import check_apart, check_folder
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
"""Endings of an output that mean a file even if a folder is read; any other ending is part of a folder's name."""
_MOST_SHOWN = 12


def container_for(path: str | os.PathLike[str], layout: Layout | None = None) -> str:
    """Tell which container an output gets from its name.

    Args:
        path: the output.
        layout: the folder that was read, if it was one.

    Returns:
        `safetensors` for that ending. If a folder was read, `folder` for a name with none of
        `FILE_ENDINGS`, one that ends in a slash, and a folder that exists. `torch-zip` for every other.

    Example:
        >>> container_for("small.safetensors"), container_for("small.pt"), container_for("small")
        ('safetensors', 'torch-zip', 'torch-zip')
    """
    suffix = Path(path).suffix.lower()
    if layout is not None and (suffix not in FILE_ENDINGS or str(path).endswith(("/", os.sep)) or Path(path).is_dir()):
        return FOLDER
    return SAFETENSORS if suffix == ".safetensors" else TORCH_ZIP


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A file or folder to write.

    Args:
        path: where to write it.
        container: what to write: `folder`, `safetensors` or `torch-zip`.
        overwrite: whether an existing output may be replaced.
    """

    path: Path
    container: str
    overwrite: bool

    @staticmethod
    def named(name: str | os.PathLike[str], *, overwrite: bool, layout: Layout | None = None) -> Output:
        """Return the output for a name; see `container_for`.

        Args:
            name: the name, as the user gave it.
            overwrite: whether an existing output may be replaced.
            layout: the folder that was read, if it was one.

        Example:
            >>> Output.named("small.safetensors", overwrite=False).container
            'safetensors'
        """
        return Output(path=Path(name), container=container_for(name, layout), overwrite=overwrite)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse an output that cannot or must not be written, before any work is done.

        Args:
            checkpoint: the checkpoint that is read.

        Raises:
            OutputExistsError: it exists and `overwrite` is false.
            OutputError: it overlaps what is read, cannot be written, or cannot hold a tensor that is read.
        """
        if checkpoint.layout is not None:
            inputs = checkpoint.files if self.container == FOLDER else ()
            check_apart(self.path, folder=checkpoint.layout.folder, inputs=inputs)
        if self.container == FOLDER:
            check_folder(self.path, overwrite=self.overwrite)
        else:
            check_output(self.path, overwrite=self.overwrite, inputs=checkpoint.files)
        if self.container in (FOLDER, SAFETENSORS):  # tensors of rare dtypes are copied, never compressed
            check_storable({name: info.dtype for name, info in checkpoint.tensors.items()}, str(self.path))

    def write(
        self,
        checkpoint: Checkpoint,
        *,
        tensors: Mapping[str, torch.Tensor],
        aliases: Mapping[str, str],
        shards: Mapping[str, str],
        key: str,
        document: str | None,
    ) -> int:
        """Write the output.

        Args:
            checkpoint: the checkpoint that was read; its extras, header texts and companion files are kept.
            tensors: name -> dense tensor.
            aliases: further name -> name in `tensors` that it is tied to.
            shards: name -> its shard; used for a folder only.
            key: where the state dict belongs in a dense torch file.
            document: the JSON text of our format, or None.

        Returns:
            Bytes written.

        Raises:
            OutputError: the output is refused, does not fit on the disk, or cannot be written.
            FormatError: the document is too large.
        """
        if self.container == FOLDER and checkpoint.layout is not None:
            return write_folder(
                self.path,
                tensors=tensors,
                aliases=aliases,
                shards=shards,
                layout=checkpoint.layout,
                metadata=checkpoint.metadata,
                document=document,
                overwrite=self.overwrite,
                inputs=checkpoint.files,
            )
        return write_checkpoint(
            self.path,
            tensors=tensors,
            aliases=aliases,
            container=self.container,
            key=key,
            extras=checkpoint.extras,
            metadata=checkpoint.metadata,
            document=document,
            overwrite=self.overwrite,
            inputs=checkpoint.files,
        )

    def carried_notes(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Return what the output keeps beside the tensors of a checkpoint, and what not, a sentence each.

        Args:
            checkpoint: the checkpoint that is read.

        Returns:
            No sentence if everything is kept and no companion file is copied.
        """
        layout = checkpoint.layout
        kind = SAFETENSORS if self.container == FOLDER else self.container
        notes = []
        names = left_out(kind, extras=checkpoint.extras, metadata=checkpoint.metadata)
        if names:
            notes.append(f"not stored, because a {kind} file cannot hold them: {listed(names, _MOST_SHOWN)}")
        if layout is not None and self.container == FOLDER:
            notes += [f"copied unchanged: {listed(layout.companions, _MOST_SHOWN)}"] if layout.companions else []
            if layout.ignored:
                ignored = listed(layout.ignored, _MOST_SHOWN)
                notes.append(f"not copied (only small files without weights are copied): {ignored}")
        elif layout is not None and layout.companions:
            notes.append(f"not included in the single output file: {listed(layout.companions, _MOST_SHOWN)}")
        return tuple(notes)

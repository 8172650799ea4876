"""The teacher of a compressed file: the original checkpoint, found and loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import FinetuneError, MPOCompressError
from mpocompress.modules.load import load_into
from mpocompress.reports.compression import Report
from mpocompress.text import shown
from mpocompress.user.dense_model import load_weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Teacher:
    """A teacher.

    Args:
        model: the model with the weights of the file; None to train on targets alone.
        name: name of the file; empty without one.
        notes: notes for the report.
        inputs: digest of the file, to recognise the same run.
    """

    model: nn.Module | None = None
    name: str = ""
    notes: tuple[str, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()


def load_teacher(path: Path, model: nn.Module, report: Report, *, allow_pickle: bool) -> Teacher:
    """Load a teacher into a model.

    Args:
        path: its file.
        model: a new model.
        report: report of the compressed file.
        allow_pickle: load a pickle with `torch.load`, which runs the code that it names.

    Raises:
        CheckpointError: the file cannot be read.
        ModelError: the weights do not fit the model.
    """
    with _open(path, report, allow_pickle=allow_pickle) as checkpoint:
        name, notes = checkpoint.path.name, tuple[str, ...]()
        digest = checkpoint.sha256()
        if checkpoint.document is not None:
            model = load_into(checkpoint, model).model
            notes = (f"The teacher, {shown(name)}, is a compressed file itself.",)
        else:
            load_weights(model, checkpoint)
            if report.source.sha256 and digest != report.source.sha256:
                notes = (f"The teacher, {shown(name)}, is not the file that was compressed: its bytes differ.",)
    return Teacher(model=model, name=name, notes=notes, inputs=(("original", digest),))


def find_original(source: Path, report: Report) -> Path:
    """Return the path of the checkpoint that a file was compressed from, in its folder or in the working directory.

    Args:
        source: the compressed file.
        report: its report.

    Raises:
        FinetuneError: it is not there.
    """
    name = report.source.file
    for folder in (source.absolute().parent, Path.cwd()):
        if name and (folder / name).exists() and (folder / name).resolve() != source.resolve():
            return folder / name
    raise FinetuneError(
        where=source.name,
        found=f"no {shown(name) or 'original'} in its folder",
        why="the outputs of the original are the target of the training",
        action="Give the original checkpoint as the teacher, or train only on targets, without a teacher.",
    )


def _open(path: Path, report: Report, *, allow_pickle: bool) -> Checkpoint:
    """Open the file, at the state dict that was compressed if it has one with that key."""
    try:
        return open_checkpoint(path, key=report.source.key or None, allow_pickle=allow_pickle)
    except MPOCompressError:
        if not report.source.key:
            raise
        return open_checkpoint(path, allow_pickle=allow_pickle)

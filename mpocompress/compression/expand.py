"""Writing an ordinary dense checkpoint from a compressed one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mpocompress.checkpoint.checkpoint import TORCH_ZIP, Checkpoint
from mpocompress.checkpoint.dtypes import DTYPES
from mpocompress.checkpoint.output import carried_notes, check_target, container_for, write_target
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.in_place import write_replaced
from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.compression.format import _shards, dense_tensors, places_of_members
from mpocompress.compression.options import ExpandOptions
from mpocompress.compression.stored_report import stored_report
from mpocompress.errors import CheckpointError, OutputError
from mpocompress.jobs import one_blas_thread
from mpocompress.reports.compression import Report
from mpocompress.text import StrPath, shown
from mpocompress.user.options import with_keywords


@with_keywords(ExpandOptions)
def expand(source: StrPath, target: StrPath, options: ExpandOptions) -> Report:
    """Write an ordinary dense checkpoint from a compressed one: original names, dtypes and nesting.

    Args:
        source: a file or folder that `compress` wrote.
        target: what to write; a name ending in `.safetensors` makes a safetensors file, any other a torch file. If the
            source is a folder, a name that does not end like a file (`.pt`, `.bin` and so on) makes a folder.
        options: the fields of `ExpandOptions`.

    Returns:
        The report that the compressed file holds; its notes say what the new file could not keep.

    Raises:
        CheckpointError: the source cannot be read.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
        OutputError: the target cannot be written, or the dense tensors would not fit beside it.
    """
    named, source, target = target, Path(source), Path(target)
    like, overwrite = options.like, options.overwrite
    with open_checkpoint(source) as checkpoint:
        report = stored_report(checkpoint)
        # In the form of the original it is one file that holds whatever the original does.
        container = container_for(named, checkpoint.layout) if like is None else TORCH_ZIP
        check_target(target, container=container, overwrite=overwrite, checkpoint=checkpoint)
        _check_room(report, target)
        with Spool(target) as spool, one_blas_thread():
            tensors = dense_tensors(report, checkpoint.tensors, checkpoint.tensor, where=source.name, spool=spool)
            if like is not None:
                return _expand_like(checkpoint, report, tensors, like, target, overwrite)
            ties = {name: info.alias_of for name, info in checkpoint.tensors.items() if info.alias_of is not None}
            report = dataclasses.replace(report, notes=carried_notes(container, checkpoint))
            write_target(
                target,
                container=container,
                checkpoint=checkpoint,
                tensors=tensors,
                aliases={**ties, **report.aliases},
                shards=places_of_members(report.compressed, _shards(checkpoint)),
                key=report.source.key,
                document=None,
                overwrite=overwrite,
            )
    return report


def _expand_like(
    checkpoint: Checkpoint,
    report: Report,
    tensors: Mapping[str, Tensor],
    like: StrPath,
    target: Path,
    overwrite: bool,
) -> Report:
    """Write the dense tensors into a copy of the original."""
    with _original(like, report) as original:
        write_replaced(target, original=original, tensors=tensors, overwrite=overwrite, inputs=checkpoint.files)
        same = original.sha256() == report.source.sha256
        kept = tuple(note.partition(":")[0] for note in original.notes if "copy of the weights" in note)
    notes = []
    if not same:
        notes.append(f"{Path(like).name} has other bytes than the file that was compressed, but its tensors fit")
    if kept:
        notes.append(f"left as they were, since only the state dict is replaced: {', '.join(kept)}")
    return dataclasses.replace(report, notes=tuple(notes))


def _original(like: StrPath, report: Report) -> Checkpoint:
    """The file that was compressed, open at the state dict that was."""
    try:
        return open_checkpoint(like, key=report.source.key)
    except CheckpointError as error:
        if "at key" not in error.found:
            raise
        raise CheckpointError(
            where=error.where,
            found=error.found,
            why=f"there it was in the file that was compressed, {shown(report.source.file)}: this is another one",
            action="Give the original file.",
        ) from error


def _check_room(report: Report, target: Path) -> None:
    """Refuse to expand what the disk cannot hold, before anything is multiplied out: once put aside, once written."""
    needed = 2 * sum(m.dense_parameters * DTYPES[m.source_dtype].itemsize for m in report.compressed)
    free = shutil.disk_usage(target.resolve().parent).free
    if needed > free:
        raise OutputError(
            where=target.name,
            found=f"{needed:,} bytes to write: the dense weights, and once more while they are put together",
            why=f"the disk has {free:,} bytes free",
            action="Free some space, or write to another disk. If the file is not yours, it may be made to fill disks.",
        )

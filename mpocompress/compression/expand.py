"""Write a dense checkpoint from a compressed one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mpocompress.checkpoint.checkpoint import TORCH_ZIP, Checkpoint
from mpocompress.checkpoint.dtypes import DTYPES
from mpocompress.checkpoint.output import Output
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.in_place import write_replaced
from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.compression.core_tensors import dense_tensors, shards_of, shards_of_members
from mpocompress.compression.options import ExpandOptions
from mpocompress.compression.read_report import read_report
from mpocompress.errors import CheckpointError, OutputError
from mpocompress.parallel import one_blas_thread
from mpocompress.reports.compression import Report
from mpocompress.text import StrPath, shown
from mpocompress.user.options import with_keywords


@with_keywords(ExpandOptions)
def expand(source: StrPath, target: StrPath, options: ExpandOptions) -> Report:
    """Write a dense checkpoint from a compressed one, with the original names, dtypes and nesting.

    Args:
        source: a file or folder that `compress` wrote.
        target: the output; a name ending in `.safetensors` gives a safetensors file, any other a torch file. If the
            source is a folder, a name without the ending of a file (`.pt`, `.bin` and so on) gives a folder.
        options: the fields of `ExpandOptions`.

    Returns:
        The report inside the compressed file; its notes list what the new file does not contain.

    Raises:
        CheckpointError: the source cannot be read.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
        OutputError: the target cannot be written, or the disk is too small for the dense tensors.
    """
    with open_checkpoint(Path(source)) as checkpoint:
        report = read_report(checkpoint)
        output = Output.named(target, overwrite=options.overwrite, layout=checkpoint.layout)
        if options.like is not None:  # one file in the form of the original, whatever that is
            output = dataclasses.replace(output, container=TORCH_ZIP)
        output.check(checkpoint)
        _check_room(report, output.path)
        with Spool(output.path) as spool, one_blas_thread():
            tensors = dense_tensors(
                report, checkpoint.tensors, checkpoint.tensor, where=checkpoint.path.name, spool=spool
            )
            if options.like is not None:
                return _expand_like(checkpoint, report, tensors, options.like, output)
            report = dataclasses.replace(report, notes=output.carried_notes(checkpoint))
            output.write(
                checkpoint,
                tensors=tensors,
                aliases={**checkpoint.aliases, **report.aliases},
                shards=shards_of_members(report.compressed, shards_of(checkpoint)),
                key=report.source.key,
                document=None,
            )
    return report


def _expand_like(
    checkpoint: Checkpoint, report: Report, tensors: Mapping[str, Tensor], like: StrPath, output: Output
) -> Report:
    """Write the dense tensors into a copy of the original."""
    with _original(like, report) as original:
        write_replaced(
            output.path,
            original=original,
            tensors=tensors,
            overwrite=output.overwrite,
            inputs=checkpoint.files,
        )
        is_same = original.sha256() == report.source.sha256
        copies = tuple(note.partition(":")[0] for note in original.notes if "copy of the weights" in note)
    notes = []
    if not is_same:
        notes.append(f"{Path(like).name} differs from the file that was compressed, but its tensors match")
    if copies:
        notes.append(f"unchanged, because only the state dict is replaced: {', '.join(copies)}")
    return dataclasses.replace(report, notes=tuple(notes))


def _original(like: StrPath, report: Report) -> Checkpoint:
    """Open the original at the state dict that was compressed."""
    try:
        return open_checkpoint(like, key=report.source.key)
    except CheckpointError as error:
        if "at key" not in error.found:
            raise
        raise CheckpointError(
            where=error.where,
            found=error.found,
            why=f"the file that was compressed, {shown(report.source.file)}, had its state dict there",
            action="Pass the original file.",
        ) from error


def _check_room(report: Report, target: Path) -> None:
    """Refuse to expand a file whose dense weights do not fit on the disk twice: in the spool and in the output."""
    needed = 2 * sum(matrix.dense_parameters * DTYPES[matrix.source_dtype].itemsize for matrix in report.compressed)
    free = shutil.disk_usage(target.resolve().parent).free
    if needed > free:
        raise OutputError(
            where=target.name,
            found=f"{needed:,} bytes needed for the dense weights, in the output and in a temporary file",
            why=f"the disk has {free:,} bytes free",
            action="Free some space, or write to another disk. A file from an untrusted source may be crafted to fill "
            "the disk.",
        )

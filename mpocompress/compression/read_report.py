"""The report inside a compressed file."""

from __future__ import annotations

import dataclasses

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import FormatError
from mpocompress.planning.targets import TARGETS
from mpocompress.reports.compression import Report
from mpocompress.text import shown


def read_report(
    checkpoint: Checkpoint, *, otherwise: str = "Pass a file that mpocompress wrote, or compress this one."
) -> Report:
    """Return the report inside a compressed file, its sums checked, with the size of the file.

    Args:
        checkpoint: the open file.
        otherwise: advice to the user if the file is not compressed.

    Raises:
        FormatError: the file is not compressed, or contradicts itself.
        ReportError: figures in the report do not add up.
    """
    if checkpoint.document is None:
        raise FormatError(
            where=checkpoint.path.name,
            found="the checkpoint is not compressed",
            why="it has no compression report",
            action=otherwise,
        )
    report = Report.from_json(checkpoint.document, where=checkpoint.path.name)
    if report.target is not None and report.target.kind not in TARGETS:
        raise FormatError(
            where=checkpoint.path.name,
            found=f"target.kind: {shown(report.target.kind)!r}",
            why=f"the kinds of targets are {', '.join(TARGETS)}",
            action=Report.IF_DAMAGED,
        )
    totals = dataclasses.replace(report.totals, file_size_bytes_after=checkpoint.size_bytes)
    return dataclasses.replace(report, totals=totals)

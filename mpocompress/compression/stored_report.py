"""The report inside a compressed file."""

from __future__ import annotations

import dataclasses

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import FormatError
from mpocompress.reports.compression import Report


def stored_report(
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
    totals = dataclasses.replace(report.totals, file_size_bytes_after=checkpoint.size_bytes)
    return dataclasses.replace(report, totals=totals)

"""What `inspect` returns, by the kind of checkpoint that a test knows it has."""

from __future__ import annotations

from typing import Any

import mpocompress
from mpocompress.reports.compression import Report
from mpocompress.reports.overview import Overview
from mpocompress.text import StrPath


def report_in(source: StrPath) -> Report:
    """Return the report inside a compressed checkpoint."""
    report = mpocompress.inspect(source)
    assert isinstance(report, Report)
    return report


def overview_of(source: StrPath, **options: Any) -> Overview:
    """Return the overview of an ordinary checkpoint."""
    overview = mpocompress.inspect(source, **options)
    assert isinstance(overview, Overview)
    return overview

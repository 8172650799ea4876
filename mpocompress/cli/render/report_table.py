"""The table of a report, its totals, and its sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.finetuning_table import show_finetuning
from mpocompress.cli.render.formatting import (
    achieved,
    counted,
    fit_names,
    kind_sources,
    labelled,
    requested,
    shape_text,
    sites_label,
    skipped_text,
    times,
)
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import printable, shown_size

WIDE = 110
"""Columns of a terminal that shows all columns of the table."""
WIDE_CALIBRATED = 140
"""The same with calibration inputs."""
LEGEND = (
    "Weighted error: relative error weighted with the calibration inputs. Sensitivity: divergence if only this matrix "
    "is compressed."
)


def show_report(report: Report, console: Console) -> None:
    """Print a report.

    Args:
        report: the report.
        console: the console.
    """
    if report.calibration is not None:
        console.print(_calibration(report.calibration), highlight=False)
        console.print()
    if report.matrices:
        table, pattern = _table(report, console.width)
        console.print(table)
        if pattern:
            console.print(Text(pattern), highlight=False)
        if report.calibration is not None:
            console.print(LEGEND, highlight=False)
    _show_reasons("Kept dense", ((matrix.name, matrix.reason) for matrix in report.matrices), console)
    if report.calibration is not None:
        _show_reasons("Compressed without calibration inputs", report.calibration.uncalibrated.items(), console)
    console.print()
    console.print(_totals(report))
    for number, run in enumerate(report.finetuning, start=1):
        console.print(f"\n[bold]Fine-tuning{f' {number}' if len(report.finetuning) > 1 else ''}[/]")
        show_finetuning(run, console)
    _show_sentences(report, console)


def _table(report: Report, width: int) -> tuple[Table, str]:
    """Return one row for every matrix, and a sentence on names that were shortened."""
    is_calibrated = report.calibration is not None
    is_wide = width >= (WIDE_CALIBRATED if is_calibrated else WIDE)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    rows = [_cells(matrix, is_wide=is_wide, is_calibrated=is_calibrated) for matrix in report.matrices]
    for heading in rows[0]:
        justify = "left" if heading in ("weight", "sites", "dtype") else "right"
        table.add_column(heading, justify=justify, no_wrap=True, vertical="bottom")  # type: ignore[arg-type]
    columns = [[*heading.split("\n"), *(row[heading] for row in rows)] for heading in rows[0] if heading != "weight"]
    room = width - sum(max(map(len, cells)) + 2 for cells in columns) - 2
    names, pattern = fit_names([row["weight"] for row in rows], max(16, room))
    for name, row in zip(names, rows, strict=True):
        table.add_row(Text(name), *list(row.values())[1:])
    return table, pattern


def _cells(matrix: MatrixReport, *, is_wide: bool, is_calibrated: bool) -> dict[str, str]:
    """Return the cells of a matrix by heading."""
    label = sites_label(matrix.row_dims, matrix.col_dims, matrix.anti_aligned)
    if is_wide and matrix.is_compressed:
        label += "  " + " ".join(f"{row}x{col}" for row, col in zip(matrix.row_dims, matrix.col_dims, strict=True))
    smaller = times(matrix.dense_parameters, matrix.parameters) if matrix.is_compressed else ""
    error = f"{matrix.relative_error:.4f}" if matrix.is_compressed else ""
    cells = {"weight": matrix.name, "shape": shape_text(matrix.shape), "sites": label}
    cells["bonds"] = ",".join(map(str, matrix.bonds))
    if is_wide:
        cells["parameters before"] = f"{matrix.dense_parameters:,}"
    if is_wide or not is_calibrated:
        cells |= {"parameters": f"{matrix.parameters:,}", "smaller": smaller, "error": error}
    else:
        cells["smaller"] = smaller
    if is_calibrated:
        cells["weighted error" if is_wide else "weighted\nerror"] = _figure(matrix.weighted_error)
        cells["sensitivity"] = _figure(matrix.sensitivity)
    return cells | ({"dtype": matrix.dtype} if is_wide else {})


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _calibration(report: CalibrationReport) -> Table:
    """Return the divergence of the outputs and how it was measured."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    grid.add_row("outputs", f"{report.kind}: {printable(report.kind_from)}")
    if report.divergence is not None:
        unrelated = report.unrelated_divergence
        scale = f"; unrelated outputs {unrelated:.3g}" if unrelated is not None else ""
        grid.add_row("divergence", f"{report.divergence:.3g} ({printable(report.measure)}){scale}")
    if report.agreement is not None:
        grid.add_row("agreement", f"{report.agreement:.1%}")
    held_out = f"{report.held_out_samples:,} held out" if report.held_out_samples else "none held out"
    held_out = "outputs not compared" if report.divergence is None else held_out
    refit = "; layers refitted in order" if report.refit_mix < 1.0 else ""
    grid.add_row("calibration", f"{counted(report.samples, 'sample', 'samples')}, {held_out}{refit}")
    return grid


def _show_reasons(heading: str, reasons: Iterable[tuple[str, str]], console: Console) -> None:
    """Print the names of matrices by reason, one line for every reason; an empty one is left out."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in reasons:
        if reason:
            by_reason[reason].append(name)
    if not by_reason:
        return
    console.print(f"\n[bold]{heading}[/]")
    for reason, (first, *others) in by_reason.items():
        more = f" and {len(others)} more" if others else ""
        console.print(Padding(escape(printable(f"{first}{more}: {reason}")), (0, 0, 0, 2)), highlight=False)


def _totals(report: Report) -> Table:
    """Return the sums over the checkpoint."""
    totals = report.totals
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    if report.target is not None:
        grid.add_row("target", f"{requested(report.target)}, achieved {achieved(report.target)}")
    share = totals.eligible_parameters / totals.dense_parameters if totals.dense_parameters else 0.0
    grid.add_row(
        "eligible",
        f"{totals.eligible_parameters:,} -> {totals.eligible_parameters_after:,} parameters, "
        f"{times(totals.eligible_parameters, totals.eligible_parameters_after)} smaller "
        f"({share:.1%} of all parameters)",
    )
    grid.add_row(
        "whole model",
        f"{totals.dense_parameters:,} -> {totals.parameters:,} parameters, "
        f"{times(totals.dense_parameters, totals.parameters)} smaller",
    )
    grid.add_row(
        "weights",
        f"{shown_size(totals.size_bytes_before)} -> {shown_size(totals.size_bytes_after)}, "
        f"{times(totals.size_bytes_before, totals.size_bytes_after)} smaller",
    )
    if totals.file_size_bytes_after is not None:
        grid.add_row(
            "file", f"{shown_size(totals.file_size_bytes_before)} -> {shown_size(totals.file_size_bytes_after)}"
        )
    if report.compressed:
        kind = "relative, Frobenius norm" + ("; not weighted" if report.calibration is not None else "")
        grid.add_row("error", f"{report.relative_error:.4f} over all eligible weights ({kind})")
    if report.matrices:
        grid.add_row("kinds", kind_sources(matrix.kind_from for matrix in report.matrices))
    grid.add_row("skipped", escape(skipped_text(report)))
    return grid


def _show_sentences(report: Report, console: Console) -> None:
    """Print the notes, the verdict, and what was not met."""
    verdict = (" ".join(report.verdict()),) if report.target is not None else ()
    for label, style, sentences in (
        ("Note", "yellow", report.notes),
        ("Verdict", "bold", verdict),
        ("Not met", "bold red", report.unmet),
    ):
        for sentence in sentences:
            console.print()
            console.print(labelled(sentence, label, style), highlight=False)

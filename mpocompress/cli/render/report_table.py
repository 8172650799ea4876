"""The report of a compression as a table, its totals, and what it means in words."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import (
    achieved,
    asked,
    counted,
    fitted,
    kinds,
    labelled,
    shape,
    sites_label,
    skipped,
    times,
)
from mpocompress.cli.render.tuning_table import show_tuning
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.compression import MatrixReport, Report
from mpocompress.text import printable, shown_size

WIDE = 110
"""From this many columns on, a table shows everything."""
WIDE_FELT = 130
"""The same with what calibration inputs add."""
FELT = "felt: error as the outputs feel it; alone: divergence with only this matrix compressed."


def show_report(report: Report, console: Console) -> None:
    """Print a report.

    Args:
        report: the report.
        console: where to.
    """
    if report.calibration is not None:
        console.print(_outputs(report.calibration), highlight=False)
        console.print()
    if report.matrices:
        table, whole = _table(report, console.width)
        console.print(table)
        if whole:
            console.print(Text(whole), highlight=False)
        if report.calibration is not None:
            console.print(FELT, highlight=False)
    _show_dense(report, console)
    _show_left_out(report, console)
    console.print()
    console.print(_totals(report))
    for number, one in enumerate(report.tuning, start=1):
        console.print(f"\n[bold]Fine-tuning{f' {number}' if len(report.tuning) > 1 else ''}[/]")
        show_tuning(one, console)
    _show_words(report, console)


def _table(report: Report, width: int) -> tuple[Table, str]:
    """One row for every eligible matrix, and the pattern of names that were shortened."""
    felt = report.calibration is not None
    wide = width >= (WIDE_FELT if felt else WIDE)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("weight", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("sites", no_wrap=True)
    table.add_column("bonds", justify="right", no_wrap=True)
    if wide:
        table.add_column("parameters before", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("smaller", justify="right", no_wrap=True)
    if wide or not felt:
        table.add_column("error", justify="right", no_wrap=True)
    if felt:
        table.add_column("felt", justify="right", no_wrap=True)
        table.add_column("alone", justify="right", no_wrap=True)
    if wide:
        table.add_column("dtype", no_wrap=True)
    rows = [_row(matrix, wide, felt) for matrix in report.matrices]
    columns = [[str(column.header), *cells] for column, *cells in zip(table.columns, *rows, strict=True)]
    room = width - sum(max(map(len, cells)) + 2 for cells in columns[1:]) - 2
    names, whole = fitted([row[0] for row in rows], max(16, room))
    for name, (_, *cells) in zip(names, rows, strict=True):
        table.add_row(Text(name), *cells)
    return table, whole


def _row(matrix: MatrixReport, wide: bool, felt: bool) -> list[str]:
    """The cells of one matrix."""
    label = sites_label(matrix.row_dims, matrix.col_dims, matrix.anti_aligned)
    if wide and matrix.is_compressed:
        label += "  " + " ".join(f"{row}x{col}" for row, col in zip(matrix.row_dims, matrix.col_dims, strict=True))
    return [
        matrix.name,
        shape(matrix.shape),
        label,
        ",".join(map(str, matrix.bonds)),
        *([f"{matrix.dense_parameters:,}"] if wide else []),
        f"{matrix.parameters:,}",
        times(matrix.dense_parameters, matrix.parameters) if matrix.is_compressed else "",
        *([f"{matrix.relative_error:.4f}" if matrix.is_compressed else ""] if wide or not felt else []),
        *([_figure(matrix.weighted_error), _figure(matrix.sensitivity)] if felt else []),
        *([matrix.dtype] if wide else []),
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _outputs(found: CalibrationReport) -> Table:
    """What the model's outputs lost."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    grid.add_row("outputs", f"{found.kind}: {printable(found.said)}")
    if found.divergence is not None:
        other = f"; for other inputs {found.unrelated:.3g}" if found.unrelated is not None else ""
        grid.add_row("divergence", f"{found.divergence:.3g} ({printable(found.measure)}){other}")
    if found.agreement is not None:
        grid.add_row("same answer", f"{found.agreement:.1%}")
    measured = f"{found.held_out:,} others held out" if found.held_out else "none held out"
    measured = "outputs not measured" if found.divergence is None else measured
    refit = "; layers refitted in order" if found.mix < 1.0 else ""
    grid.add_row("calibration", f"{counted(found.samples, 'sample', 'samples')} learnt from, {measured}{refit}")
    return grid


def _show_dense(report: Report, console: Console) -> None:
    """Why matrices were kept dense, one line for every reason."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for matrix in report.matrices:
        if matrix.reason:
            reasons[matrix.reason].append(matrix.name)
    if not reasons:
        return
    console.print("\n[bold]Kept dense[/]")
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(Padding(escape(printable(f"{names[0]}{more}: {reason}")), (0, 0, 0, 2)), highlight=False)


def _show_left_out(report: Report, console: Console) -> None:
    """Which matrices were treated without data, one line for every reason."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in report.calibration.left_out.items() if report.calibration is not None else ():
        reasons[reason].append(name)
    if not reasons:
        return
    console.print("\n[bold]Treated without data[/]")
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(Padding(escape(printable(f"{names[0]}{more}: {reason}")), (0, 0, 0, 2)), highlight=False)


def _totals(report: Report) -> Table:
    """Sums, coverage and sizes."""
    totals = report.totals
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    if report.target is not None:
        grid.add_row("target", f"{asked(report.target)}, achieved {achieved(report.target)}")
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
        plain = "; not as felt" if report.calibration is not None else ""
        grid.add_row(
            "error", f"{report.relative_error:.4f} over all eligible weights (relative, Frobenius norm{plain})"
        )
    if report.matrices:
        grid.add_row("kinds", kinds(matrix.kind_from for matrix in report.matrices))
    grid.add_row("skipped", escape(skipped(report)))
    return grid


def _show_words(report: Report, console: Console) -> None:
    """Verdict, notes, and what was not met."""
    verdict = (" ".join(report.verdict()),) if report.target is not None else ()
    said = (("yellow", "Note", report.notes), ("bold", "Verdict", verdict), ("bold red", "Not met", report.unmet))
    for style, label, sentences in said:
        for sentence in sentences:
            console.print()
            console.print(labelled(sentence, label, style), highlight=False)

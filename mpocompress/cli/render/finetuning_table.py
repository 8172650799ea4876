"""Tables of a fine-tuning run: its settings, and its evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import counted, labelled
from mpocompress.reports.finetuning import Evaluation, FinetuningReport
from mpocompress.text import printable

MOST_ROWS = 8
"""Number of evaluations shown; the first, the best and the last are always among them."""


def show_finetuning(report: FinetuningReport, console: Console) -> None:
    """Print a fine-tuning run.

    Args:
        report: the report.
        console: the console.
    """
    console.print(_settings(report))
    console.print()
    console.print(_evaluations(report))
    if len(report.evaluations) > MOST_ROWS:
        console.print(f"--json has all {len(report.evaluations)} evaluations.", highlight=False)
    for note in report.notes:
        console.print()
        console.print(labelled(note), highlight=False)


def _settings(report: FinetuningReport) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    batches = f", {report.batches_per_step} batches each" if report.batches_per_step > 1 else ""
    requested = f" of {report.requested_steps:,}" if report.requested_steps != report.steps else ""
    rate = "" if report.learning_rate is None else f"learning rate {report.learning_rate:g}, "
    if report.relative_learning_rate is not None:
        rate = f"learning rate {report.relative_learning_rate:.2%} of each tensor's RMS, "
    parameters = "parameters of cores" if report.trained == "cores" else "parameters"
    held_out = f" ({counted(report.held_out_samples, 'sample', 'samples')})" if report.held_out_samples else ""
    rows = [
        ("data", f"{report.data}, {counted(report.samples, 'sample', 'samples')} used"),
        ("steps", f"{report.steps:,}{requested}{batches}"),
        ("teacher", report.teacher or "none, only targets"),
        ("loss", report.loss),
        ("outputs", f"{report.kind}: {report.kind_from}" if report.kind else ""),
        ("trained", f"{report.trained_parameters:,} {parameters}, AdamW, {rate}{report.precision}, seed {report.seed}"),
        ("selected", f"step {report.best_step:,}, the best by {report.selection_metric}{held_out}"),
        ("stopped", "" if report.is_finished else report.stop_reason),
    ]
    for name, value in rows:
        if value:
            grid.add_row(name, Text(printable(value)))
    return grid


def _evaluations(report: FinetuningReport) -> Table:
    evaluations = _sample(report.evaluations, report.best_step)
    rows = [(f"{each.step:,}" + ("  selected" if each.step == report.best_step else ""), each) for each in evaluations]
    if report.as_stored is not None:
        rows.append(("as stored", report.as_stored))
    columns = [
        ("training loss", [_number(each.training_loss) for _, each in rows]),
        ("held-out loss" if report.held_out_samples else "loss", [_number(each.loss) for _, each in rows]),
        ("agreement", ["" if each.agreement is None else f"{each.agreement:.1%}" for _, each in rows]),
        ("score", [_number(each.score) for _, each in rows]),
    ]
    columns = [(name, cells) for name, cells in columns if any(cells)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("step", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for number, (name, _) in enumerate(rows):
        table.add_row(name, *(cells[number] for _, cells in columns))
    return table


def _sample(evaluations: Sequence[Evaluation], best_step: int) -> list[Evaluation]:
    """Return evenly spread evaluations, with the first, the best and the last."""
    count = len(evaluations)
    rows = set(range(count))
    if count > MOST_ROWS:
        rows = {round(number * (count - 1) / (MOST_ROWS - 1)) for number in range(MOST_ROWS)}
    return [each for number, each in enumerate(evaluations) if number in rows or each.step == best_step]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

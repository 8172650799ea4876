"""What fine-tuning did: how it was done, and how the model got better."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import counted, labelled
from mpocompress.reports.finetuning import Evaluation, TuningReport
from mpocompress.text import printable

MOST_ROWS = 8
"""A longer history is shown in part; the first measurement, the best one and the last are always there."""


def show_tuning(report: TuningReport, console: Console) -> None:
    """Print what one fine-tuning did.

    Args:
        report: its figures.
        console: where to.
    """
    console.print(_how(report))
    console.print()
    console.print(_history(report))
    if len(report.evaluations) > MOST_ROWS:
        console.print(f"{len(report.evaluations)} measurements; --json has all of them.", highlight=False)
    for note in report.notes:
        console.print()
        console.print(labelled(note), highlight=False)


def _how(report: TuningReport) -> Table:
    """How was trained."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    batches = f", {report.batches_per_step} batches each" if report.batches_per_step > 1 else ""
    asked = f" of {report.asked_steps:,}" if report.asked_steps != report.steps else ""
    rate = "" if report.learning_rate is None else f"step size {report.learning_rate:g}, "
    rate = f"steps of {report.relative_step:.2%} of a tensor, " if report.relative_step is not None else rate
    what = "cores" if report.trained == "cores" else "parameters"
    rows = [
        ("trained on", f"{report.data}: {counted(report.samples, 'sample', 'samples')} seen"),
        ("steps", f"{report.steps:,}{asked}{batches}"),
        ("learnt from", report.teacher or "targets alone"),
        ("loss", report.loss),
        ("outputs", f"{report.kind}: {report.said}" if report.kind else ""),
        ("trained", f"{report.trained_parameters:,} {what}, AdamW, {rate}{report.precision}, seed {report.seed}"),
        ("kept", f"step {report.best_step:,}, the best by {report.measured_on}{_held_out(report)}"),
        ("stopped", "" if report.is_finished else report.stopped),
    ]
    for name, value in rows:
        if value:
            grid.add_row(name, Text(printable(value)))
    return grid


def _held_out(report: TuningReport) -> str:
    return f" ({counted(report.held_out, 'sample', 'samples')})" if report.held_out else ""


def _history(report: TuningReport) -> Table:
    """The model as it went on."""
    shown = _shown(report.evaluations, report.best_step)
    rows = [(f"{one.step:,}" + ("  kept" if one.step == report.best_step else ""), one) for one in shown]
    if report.as_stored is not None:
        rows.append(("as stored", report.as_stored))
    columns = [
        ("training loss", [_number(one.training_loss) for _, one in rows]),
        ("held-out loss" if report.held_out else "loss", [_number(one.loss) for _, one in rows]),
        ("same answer", ["" if one.agreement is None else f"{one.agreement:.1%}" for _, one in rows]),
        ("score", [_number(one.score) for _, one in rows]),
    ]
    columns = [(name, cells) for name, cells in columns if any(cells)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("step", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for place, (name, _) in enumerate(rows):
        table.add_row(name, *(cells[place] for _, cells in columns))
    return table


def _shown(evaluations: Sequence[Evaluation], best_step: int) -> list[Evaluation]:
    """Those that are shown: some, as evenly spread as can be, and the first, the best and the last."""
    count, most = len(evaluations), MOST_ROWS
    places = {round(number * (count - 1) / (most - 1)) for number in range(most)} if count > most else set(range(count))
    return [one for place, one in enumerate(evaluations) if place in places or one.step == best_step]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

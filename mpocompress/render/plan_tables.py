"""A plan as tables: the whole model first, then every matrix."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpocompress.plan_report import PlannedMatrix, PlannedTarget, PlanReport
from mpocompress.render.words import TARGET_NAMES, fraction, shape, tail, times
from mpocompress.report import Target


def show_plan(plan: PlanReport, console: Console) -> None:
    """Print a plan.

    Args:
        plan: the plan.
        console: where to.
    """
    totals = plan.checkpoint.totals
    share = totals.eligible_parameters / totals.dense_parameters
    count = len(plan.checkpoint.matrices)
    console.print(
        f"{totals.dense_parameters:,} parameters, {totals.eligible_parameters:,} of them ({share:.1%}) in {count} "
        f"{'matrix' if count == 1 else 'matrices'} that can be compressed.",
        highlight=False,
    )
    console.print()
    console.print(_whole(plan))
    for kind in dict.fromkeys(choice.target.kind for choice in plan.choices):
        choices = [choice for choice in plan.choices if choice.target.kind == kind and choice.matrices]
        if choices:
            console.print(f"\n[bold]Relative error of each matrix, by {TARGET_NAMES[kind]}[/]")
            console.print(_matrices(choices, console.width))
    console.print(
        "\nWeight errors are no quality figure: compress at two or three targets and measure each on your own task.",
        highlight=False,
    )
    for sentence in (*plan.checkpoint.notes, *plan.checkpoint.unmet):
        console.print(Text.assemble(("Note: ", "yellow"), sentence), highlight=False)


def _whole(plan: PlanReport) -> Table:
    """One row for every target."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("target", no_wrap=True)
    for heading in ("eligible after", "smaller", "whole model", "smaller", "error", "worst"):
        table.add_column(heading, justify="right", no_wrap=True)
    totals = plan.checkpoint.totals
    for choice in plan.choices:
        if choice.problem:
            table.add_row(_short(choice.target), "not possible", "", "", "", "", "")
            continue
        table.add_row(
            _short(choice.target),
            f"{choice.eligible_parameters_after:,}",
            times(totals.eligible_parameters, choice.eligible_parameters_after),
            f"{choice.parameters:,}",
            times(totals.dense_parameters, choice.parameters),
            f"{choice.relative_error:.3f}",
            f"{choice.worst_relative_error:.3f}",
        )
    return table


def _matrices(choices: Sequence[PlannedTarget], width: int) -> Table:
    """One row for every matrix, one column for every target."""
    names: dict[str, PlannedMatrix] = {matrix.name: matrix for choice in choices for matrix in choice.matrices}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("weight", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    for choice in choices:
        table.add_column(_value(choice.target), justify="right", no_wrap=True)
    longest = max(len(shape(matrix.shape)) for matrix in names.values())
    room = width - longest - 2 - sum(max(5, len(_value(choice.target))) + 2 for choice in choices) - 2
    cells = [{matrix.name: matrix for matrix in choice.matrices} for choice in choices]
    for name, matrix in names.items():
        table.add_row(
            Text(tail(name, max(16, room))), shape(matrix.shape), *(_error(column.get(name)) for column in cells)
        )
    return table


def _error(matrix: PlannedMatrix | None) -> str:
    if matrix is None:
        return ""
    return f"{matrix.relative_error:.3f}" if matrix.bonds else "dense"


def _short(target: Target) -> str:
    return f"{TARGET_NAMES[target.kind]} {_value(target)}"


def _value(target: Target) -> str:
    if target.asked is None:
        return ", ".join(f"{glob}={bond}" for glob, bond in target.by_layer.items())
    return fraction(target.asked) if target.kind == "keep" else f"{target.asked:,}"

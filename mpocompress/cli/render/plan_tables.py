"""A plan as tables: the whole model first, then every matrix."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import (
    counted,
    fitted,
    kinds,
    labelled,
    shape,
    skipped,
    times,
)
from mpocompress.planning.target import TARGETS
from mpocompress.reports.compression import Target
from mpocompress.reports.plan import PlannedMatrix, PlannedTarget, PlanReport
from mpocompress.text import printable


def show_plan(plan: PlanReport, console: Console) -> None:
    """Print a plan.

    Args:
        plan: the plan.
        console: where to.
    """
    totals = plan.checkpoint.totals
    share = totals.eligible_parameters / totals.dense_parameters
    count = counted(len(plan.checkpoint.matrices), "matrix", "matrices")
    console.print(
        f"{totals.dense_parameters:,} parameters, {totals.eligible_parameters:,} of them ({share:.1%}) in {count} that "
        "can be compressed.",
        highlight=False,
    )
    said = kinds(matrix.kind_from for matrix in plan.checkpoint.matrices)
    console.print(Text(f"Kinds: {said}."), highlight=False)
    console.print(Text(f"Skipped: {skipped(plan.checkpoint)}."), highlight=False)
    console.print()
    console.print(_whole(plan))
    for kind in dict.fromkeys(choice.target.kind for choice in plan.choices):
        choices = [choice for choice in plan.choices if choice.target.kind == kind and choice.matrices]
        if choices:
            what = "Felt error" if any(choice.divergence is not None for choice in choices) else "Relative error"
            console.print(f"\n[bold]{what} of each matrix, by {TARGETS[kind].title}[/]")
            table, whole = _matrices(choices, console.width)
            console.print(table)
            if whole:
                console.print(Text(whole), highlight=False)
    for choice in plan.choices:
        if choice.problem:
            said = f"{_short(choice.target)} is not possible: {choice.problem}."
            console.print()
            console.print(Text(printable(said)))
    said = "Weight errors are no quality figure: compress at two or three targets and measure each on your own task."
    felt = any(choice.divergence is not None for choice in plan.choices)
    if felt:
        said = "What divergence your task bears shows when you compress at two or three targets and measure them on it."
    elif any(TARGETS[choice.target.kind].is_budget for choice in plan.choices):
        said += (
            " A keep target leaves the first layer of a stack dense where that takes at most half of the budget, and "
            "shares the rest out, which models take better than one bond for all, whatever the errors say."
        )
    console.print()
    console.print(said, highlight=False)
    unmet = dict.fromkeys((*plan.checkpoint.unmet, *(one for choice in plan.choices for one in choice.unmet)))
    for sentence in (*plan.checkpoint.notes, *(unmet if len(plan.choices) == 1 else plan.checkpoint.unmet)):
        console.print(labelled(sentence), highlight=False)


def _whole(plan: PlanReport) -> Table:
    """One row for every target."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("target", no_wrap=True)
    felt = any(choice.divergence is not None for choice in plan.choices)
    errors = ("divergence",) if felt else ("error", "worst")
    for heading in ("eligible after", "smaller", "whole model", "smaller", *errors):
        table.add_column(heading, justify="right", no_wrap=True)
    totals = plan.checkpoint.totals
    for choice in plan.choices:
        if choice.problem:
            table.add_row(_short(choice.target), "not possible")
            continue
        table.add_row(
            _short(choice.target),
            f"{choice.eligible_parameters_after:,}",
            times(totals.eligible_parameters, choice.eligible_parameters_after),
            f"{choice.parameters:,}",
            times(totals.dense_parameters, choice.parameters),
            *(
                [_divergence(choice)]
                if felt
                else [f"{choice.relative_error:.3f}", f"{choice.worst_relative_error:.3f}"]
            ),
        )
    return table


def _divergence(choice: PlannedTarget) -> str:
    return "" if choice.divergence is None else f"{choice.divergence:.3g}"


def _matrices(choices: Sequence[PlannedTarget], width: int) -> tuple[Table, str]:
    """One row for every matrix, one column for every target, and the pattern of names that were shortened."""
    names: dict[str, PlannedMatrix] = {matrix.name: matrix for choice in choices for matrix in choice.matrices}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("weight", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    for choice in choices:
        table.add_column(_value(choice.target), justify="right", no_wrap=True)
    longest = max(len(shape(matrix.shape)) for matrix in names.values())
    room = width - longest - 2 - sum(max(5, len(_value(choice.target))) + 2 for choice in choices) - 2
    cells = [{matrix.name: matrix for matrix in choice.matrices} for choice in choices]
    shorter, whole = fitted(list(names), max(16, room))
    for short, (name, matrix) in zip(shorter, names.items(), strict=True):
        table.add_row(Text(short), shape(matrix.shape), *(_error(column.get(name)) for column in cells))
    return table, whole


def _error(matrix: PlannedMatrix | None) -> str:
    if matrix is None:
        return "-"  # the LSTM takes its other form at this target
    return f"{matrix.relative_error:.3f}" if matrix.bonds else "dense"


def _short(target: Target) -> str:
    return f"{TARGETS[target.kind].title} {_value(target)}"


def _value(target: Target) -> str:
    if target.asked is None:
        return printable(", ".join(f"{glob}={bond}" for glob, bond in target.by_layer.items()))
    return TARGETS[target.kind].show_short(target.asked)

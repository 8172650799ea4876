"""Tables of a plan: the whole model for every target, then every matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import (
    counted,
    fit_names,
    kind_sources,
    labelled,
    shape_text,
    skipped_text,
    times,
)
from mpocompress.planning.targets import TARGETS
from mpocompress.reports.compression import Target
from mpocompress.reports.plan import PlannedMatrix, PlannedTarget, PlanReport
from mpocompress.text import printable


def show_plan(plan: PlanReport, console: Console) -> None:
    """Print a plan.

    Args:
        plan: the plan.
        console: the console.
    """
    totals = plan.checkpoint.totals
    share = totals.eligible_parameters / totals.dense_parameters
    count = counted(len(plan.checkpoint.matrices), "matrix", "matrices")
    console.print(
        f"{totals.eligible_parameters:,} of {totals.dense_parameters:,} parameters ({share:.1%}) in {count} can be "
        "compressed.",
        highlight=False,
    )
    sources = kind_sources(matrix.kind_from for matrix in plan.checkpoint.matrices)
    console.print(Text(f"Kinds: {sources}."), highlight=False)
    console.print(Text(f"Skipped: {skipped_text(plan.checkpoint)}."), highlight=False)
    console.print()
    console.print(_model(plan))
    _show_matrices(plan, console)
    for choice in plan.choices:
        if choice.problem:
            console.print()
            console.print(Text(printable(f"{_target(choice.target)} is not possible: {choice.problem}.")))
    console.print()
    console.print(_advice(plan), highlight=False)
    unmet = plan.checkpoint.unmet
    if len(plan.choices) == 1:
        unmet = tuple(dict.fromkeys((*unmet, *plan.choices[0].unmet)))
    for sentence in (*plan.checkpoint.notes, *unmet):
        console.print(labelled(sentence), highlight=False)


def _is_calibrated(choices: Iterable[PlannedTarget]) -> bool:
    return any(choice.divergence is not None for choice in choices)


def _advice(plan: PlanReport) -> str:
    if _is_calibrated(plan.choices):
        return "Compress at two or three targets and evaluate each on your own task to find an acceptable divergence."
    advice = (
        "Weight errors do not measure quality: compress at two or three targets and evaluate each on your own task."
    )
    if any(TARGETS[choice.target.kind].is_budget for choice in plan.choices):
        advice += (
            " A budget for all layers leaves the first layer of a stack dense if that takes at most half of the "
            "budget, and distributes the rest over the others. Models tolerate that better than one bond for all "
            "layers, even where weight errors suggest the opposite."
        )
    return advice


def _show_matrices(plan: PlanReport, console: Console) -> None:
    """Print the errors of all matrices, a table for every kind of target."""
    for kind in dict.fromkeys(choice.target.kind for choice in plan.choices):
        choices = [choice for choice in plan.choices if choice.target.kind == kind and choice.matrices]
        if choices:
            error = "Weighted error" if _is_calibrated(choices) else "Relative error"
            console.print(f"\n[bold]{error} of each matrix, by {TARGETS[kind].title}[/]")
            table, pattern = _matrices(choices, console.width)
            console.print(table)
            if pattern:
                console.print(Text(pattern), highlight=False)


def _model(plan: PlanReport) -> Table:
    """Return one row for every target."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("target", no_wrap=True)
    is_calibrated = _is_calibrated(plan.choices)
    errors = ("divergence",) if is_calibrated else ("error", "worst")
    for heading in ("eligible after", "smaller", "whole model", "smaller", *errors):
        table.add_column(heading, justify="right", no_wrap=True)
    totals = plan.checkpoint.totals
    for choice in plan.choices:
        if choice.problem:
            table.add_row(_target(choice.target), "not possible")
            continue
        table.add_row(
            _target(choice.target),
            f"{choice.eligible_parameters_after:,}",
            times(totals.eligible_parameters, choice.eligible_parameters_after),
            f"{choice.parameters:,}",
            times(totals.dense_parameters, choice.parameters),
            *(
                [_divergence(choice)]
                if is_calibrated
                else [f"{choice.relative_error:.3f}", f"{choice.worst_relative_error:.3f}"]
            ),
        )
    return table


def _divergence(choice: PlannedTarget) -> str:
    return "" if choice.divergence is None else f"{choice.divergence:.3g}"


def _matrices(choices: Sequence[PlannedTarget], width: int) -> tuple[Table, str]:
    """Return one row for every matrix and one column for every target, and a sentence on names that were shortened."""
    names: dict[str, PlannedMatrix] = {matrix.name: matrix for choice in choices for matrix in choice.matrices}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("weight", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    for choice in choices:
        table.add_column(_value(choice.target), justify="right", no_wrap=True)
    longest = max(len(shape_text(matrix.shape)) for matrix in names.values())
    room = width - longest - 2 - sum(max(5, len(_value(choice.target))) + 2 for choice in choices) - 2
    cells = [{matrix.name: matrix for matrix in choice.matrices} for choice in choices]
    shortened, pattern = fit_names(list(names), max(16, room))
    for short, (name, matrix) in zip(shortened, names.items(), strict=True):
        table.add_row(Text(short), shape_text(matrix.shape), *(_error(column.get(name)) for column in cells))
    return table, pattern


def _error(matrix: PlannedMatrix | None) -> str:
    if matrix is None:
        return "-"  # the LSTM has its other form at this target
    return f"{matrix.relative_error:.3f}" if matrix.bonds else "dense"


def _target(target: Target) -> str:
    return f"{TARGETS[target.kind].title} {_value(target)}"


def _value(target: Target) -> str:
    if target.requested is None:
        return printable(", ".join(f"{glob}={bond}" for glob, bond in target.bond_by_layer.items()))
    return TARGETS[target.kind].show_short(target.requested)

"""An ordinary checkpoint as tables: what it is and holds, what could be compressed, and what a target would leave."""

from __future__ import annotations

from collections import Counter, defaultdict

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import (
    FORMS,
    KIND_NAMES,
    KIND_SOURCES,
    counted,
    fitted,
    kinds,
    labelled,
    left_alone,
    shape,
    times,
)
from mpocompress.planning.target import TARGETS
from mpocompress.reports.overview import Overview
from mpocompress.text import printable, shown_size


def show_overview(overview: Overview, console: Console) -> None:
    """Print what a checkpoint is, holds and could give.

    Args:
        overview: the overview.
        console: where to.
    """
    console.print(_facts(overview))
    if overview.weights:
        table, whole = _weights(overview, console.width)
        console.print("\n[bold]Can be compressed[/]")
        console.print(table)
        if whole:
            console.print(Text(whole), highlight=False)
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for one in overview.skipped:
        reasons[one.reason].append(one.name)
    if reasons:
        console.print("\n[bold]Left as they are[/]")
    for reason, names in reasons.items():
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        console.print(Padding(escape(printable(f"{names[0]}{more}: {reason}")), (0, 0, 0, 2)), highlight=False)
    _show_notes(overview, console)


def show_estimates(overview: Overview, console: Console) -> None:
    """Print what targets would leave of a checkpoint, counted without reading a weight.

    Args:
        overview: the overview.
        console: where to.
    """
    console.print(f"{_eligible(overview)}.", highlight=False)
    if overview.weights:
        console.print(Text(f"Kinds: {kinds(weight.kind_from for weight in overview.weights)}."), highlight=False)
    passed = left_alone(overview.skipped, overview.parameters - overview.eligible_parameters, overview.parameters)
    console.print(Text(f"Skipped: {passed}."), highlight=False)
    if overview.weights:
        console.print()
        console.print(_estimates(overview))
        console.print(
            f"\nNo weight was read. Bonds are counted in this site shape: {overview.estimated_sites}, every weight by "
            "itself; fractions to keep are upper bounds. `mpocompress plan` without --dry-run weighs all shapes and "
            "says the errors.",
            highlight=False,
        )
    _show_notes(overview, console)


def _facts(overview: Overview) -> Table:
    """What the file is and what it holds."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    several = f" in {overview.files} files" if overview.files > 1 else ""
    where = f", state dict at {overview.key}" if overview.key else ""
    size = shown_size(overview.file_size_bytes)
    form = FORMS.get(overview.container, overview.container)
    grid.add_row("file", Text(printable(f"{overview.file}: {form}, {size}{several}{where}")))
    tensors = counted(sum(held.tensors for held in overview.dtypes), "tensor", "tensors")
    tied = f", {counted(len(overview.aliases), 'more name', 'more names')} tied to them" if overview.aliases else ""
    dtypes = ", ".join(f"{shown_size(held.size_bytes)} {held.dtype}" for held in overview.dtypes)
    grid.add_row("holds", f"{overview.parameters:,} parameters in {tensors}{tied}: {dtypes or 'nothing'}")
    if overview.recorded_classes:
        grid.add_row("classes", f"recorded for {counted(overview.recorded_classes, 'module', 'modules')}")
    layers = Counter({weight.layer: weight.kind for weight in overview.weights}.values())
    found = ", ".join(counted(count, *KIND_NAMES[kind]) for kind, count in layers.items())
    grid.add_row("eligible", _eligible(overview) + (f": {found}" if found else ""))
    if overview.weights:
        grid.add_row("kinds", kinds(weight.kind_from for weight in overview.weights))
    return grid


def _eligible(overview: Overview) -> str:
    share = overview.eligible_parameters / overview.parameters if overview.parameters else 0.0
    count = counted(len(overview.weights), "weight", "weights")
    return (
        f"{overview.eligible_parameters:,} of {overview.parameters:,} parameters ({share:.1%}) in {count} can be "
        "compressed"
    )


def _weights(overview: Overview, width: int) -> tuple[Table, str]:
    """One row for every tensor that can be compressed, and the pattern of names that were shortened."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("weight", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("known by", no_wrap=True)
    rows = [
        (
            KIND_NAMES[weight.kind][0],
            shape(weight.shape),
            f"{weight.parameters:,}",
            KIND_SOURCES[weight.kind_from].removeprefix("by "),
        )
        for weight in overview.weights
    ]
    columns = zip(("kind", "shape", "parameters", "known by"), *rows, strict=True)
    room = width - sum(max(map(len, cells)) + 2 for cells in columns) - 2
    names, whole = fitted([weight.name for weight in overview.weights], max(16, room))
    for name, cells in zip(names, rows, strict=True):
        table.add_row(Text(name), *cells)
    return table, whole


def _estimates(overview: Overview) -> Table:
    """One row for every target."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("target", no_wrap=True)
    for heading in ("eligible after", "smaller", "whole model", "smaller"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in overview.estimates:
        table.add_row(
            f"{TARGETS[one.kind].title} {TARGETS[one.kind].show_short(one.asked)}",
            f"{one.eligible_parameters_after:,}",
            times(overview.eligible_parameters, one.eligible_parameters_after),
            f"{one.parameters:,}",
            times(overview.parameters, one.parameters),
        )
    return table


def _show_notes(overview: Overview, console: Console) -> None:
    for note in overview.notes:
        console.print()
        console.print(labelled(note), highlight=False)

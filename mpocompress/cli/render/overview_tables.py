"""Tables of an uncompressed checkpoint: its contents, the tensors that can be compressed, and estimates."""

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
    fit_names,
    kind_sources,
    labelled,
    shape_text,
    skipped_by_reason,
    times,
)
from mpocompress.planning.targets import TARGETS
from mpocompress.reports.overview import Overview
from mpocompress.text import printable, shown_size


def show_overview(overview: Overview, console: Console) -> None:
    """Print the contents of a checkpoint, and which tensors can be compressed.

    Args:
        overview: the overview.
        console: the console.
    """
    console.print(_facts(overview))
    if overview.weights:
        table, pattern = _weights(overview, console.width)
        console.print("\n[bold]Can be compressed[/]")
        console.print(table)
        if pattern:
            console.print(Text(pattern), highlight=False)
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for tensor in overview.skipped:
        reasons[tensor.reason].append(tensor.name)
    if reasons:
        console.print("\n[bold]Not compressed[/]")
    for reason, names in reasons.items():
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        console.print(Padding(escape(printable(f"{names[0]}{more}: {reason}")), (0, 0, 0, 2)), highlight=False)
    _show_notes(overview, console)


def show_estimates(overview: Overview, console: Console) -> None:
    """Print the estimates of several targets.

    Args:
        overview: the overview.
        console: the console.
    """
    console.print(f"{_eligible(overview)}.", highlight=False)
    if overview.weights:
        console.print(Text(f"Kinds: {kind_sources(weight.kind_from for weight in overview.weights)}."), highlight=False)
    other = overview.parameters - overview.eligible_parameters
    skipped = skipped_by_reason(overview.skipped, other, overview.parameters)
    console.print(Text(f"Skipped: {skipped}."), highlight=False)
    if overview.weights:
        console.print()
        console.print(_estimates(overview))
        console.print(
            f"\nNo weight was read. Parameters are counted for this site shape: {overview.estimated_sites}, each "
            "weight on its own; for fractions to keep they are upper bounds. `mpocompress plan` without --dry-run "
            "compares all site shapes and predicts errors.",
            highlight=False,
        )
    _show_notes(overview, console)


def _facts(overview: Overview) -> Table:
    """Return the form of the file and its contents."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    files = f" in {overview.files} files" if overview.files > 1 else ""
    key = f", state dict at {overview.key}" if overview.key else ""
    size = shown_size(overview.file_size_bytes)
    form = FORMS.get(overview.container, overview.container)
    grid.add_row("file", Text(printable(f"{overview.file}: {form}, {size}{files}{key}")))
    tensors = counted(sum(totals.tensors for totals in overview.dtypes), "tensor", "tensors")
    tied = f" and {counted(len(overview.aliases), 'tied name', 'tied names')}" if overview.aliases else ""
    dtypes = ", ".join(f"{shown_size(totals.size_bytes)} {totals.dtype}" for totals in overview.dtypes)
    grid.add_row("contents", f"{overview.parameters:,} parameters in {tensors}{tied}: {dtypes or 'nothing'}")
    if overview.recorded_classes:
        grid.add_row("classes", f"recorded for {counted(overview.recorded_classes, 'module', 'modules')}")
    layers = Counter({weight.layer: weight.kind for weight in overview.weights}.values())
    by_kind = ", ".join(counted(count, *KIND_NAMES[kind]) for kind, count in layers.items())
    grid.add_row("eligible", _eligible(overview) + (f": {by_kind}" if by_kind else ""))
    if overview.weights:
        grid.add_row("kinds", kind_sources(weight.kind_from for weight in overview.weights))
    return grid


def _eligible(overview: Overview) -> str:
    share = overview.eligible_parameters / overview.parameters if overview.parameters else 0.0
    count = counted(len(overview.weights), "weight", "weights")
    return (
        f"{overview.eligible_parameters:,} of {overview.parameters:,} parameters ({share:.1%}) in {count} can be "
        "compressed"
    )


def _weights(overview: Overview, width: int) -> tuple[Table, str]:
    """Return one row for every tensor that can be compressed, and a sentence on names that were shortened."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("weight", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    rows = [
        (
            KIND_NAMES[weight.kind][0],
            shape_text(weight.shape),
            f"{weight.parameters:,}",
            KIND_SOURCES[weight.kind_from].removeprefix("by "),
        )
        for weight in overview.weights
    ]
    columns = zip(("kind", "shape", "parameters", "source"), *rows, strict=True)
    room = width - sum(max(map(len, cells)) + 2 for cells in columns) - 2
    names, pattern = fit_names([weight.name for weight in overview.weights], max(16, room))
    for name, cells in zip(names, rows, strict=True):
        table.add_row(Text(name), *cells)
    return table, pattern


def _estimates(overview: Overview) -> Table:
    """Return one row for every target."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("target", no_wrap=True)
    for heading in ("eligible after", "smaller", "whole model", "smaller"):
        table.add_column(heading, justify="right", no_wrap=True)
    for estimate in overview.estimates:
        kind = TARGETS[estimate.kind]
        table.add_row(
            f"{kind.title} {kind.show_short(estimate.requested)}",
            f"{estimate.eligible_parameters_after:,}",
            times(overview.eligible_parameters, estimate.eligible_parameters_after),
            f"{estimate.parameters:,}",
            times(overview.parameters, estimate.parameters),
        )
    return table


def _show_notes(overview: Overview, console: Console) -> None:
    for note in overview.notes:
        console.print()
        console.print(labelled(note), highlight=False)

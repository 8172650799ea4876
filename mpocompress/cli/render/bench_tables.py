"""A benchmark as tables: one for every layer and size of input."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import KIND_NAMES, counted, labelled, seconds, shape, sites_label, times
from mpocompress.reports.benchmark import Benched, BenchReport, Case, Timed
from mpocompress.text import listed, printable, shown_size


def show_bench(report: BenchReport, console: Console) -> None:
    """Print a benchmark.

    Args:
        report: the benchmark.
        console: where to.
    """
    machine = report.machine
    threads = counted(machine.threads, "thread", "threads")
    console.print(
        Text(printable(f"{report.file} on {machine.processor}, {machine.device}, {threads}, torch {machine.torch}")),
        highlight=False,
    )
    for benched in report.measured:
        console.print()
        for line in _heading(report, benched):
            console.print(line, highlight=False)
        for case in benched.cases:
            console.print()
            _show_case(case, console)
    console.print()
    console.print(
        "Times are medians of interleaved samples in one run. The dense row is the fastest of the paths that torch "
        "has; its weights are the cores multiplied out. The last column is the largest absolute difference to its "
        "outputs.",
        highlight=False,
    )
    for note in report.notes:
        console.print(labelled(note), highlight=False)
    console.print(labelled(report.verdict(), "Verdict", "bold"), highlight=False)


def _heading(report: BenchReport, benched: Benched) -> list[Text]:
    """What was measured, and what it is compressed to."""
    smaller = f"{times(benched.dense_parameters, benched.parameters)} fewer parameters"
    if benched.kind == "model":
        layers = counted(len(benched.layers), "layer", "layers")
        return [Text(printable(f"{report.model}: {layers} with cores, {smaller} in them"), style="bold")]
    first, *alike = [path or "the model" for path in benched.layers]
    more = f" ({counted(len(benched.layers), 'layer', 'layers')} alike: also {listed(alike)})" if alike else ""
    lines = [Text(printable(f"{first}: {KIND_NAMES[benched.kind][0]}, {smaller}{more}"), style="bold")]
    for one in benched.matrices:
        label = sites_label(one.row_dims, one.col_dims, one.anti_aligned)
        bonds = f"{'bond' if len(one.bonds) == 1 else 'bonds'} {', '.join(map(str, one.bonds))}"
        lines.append(Text(printable(f"  {one.name} {shape(one.shape)}, {label}, {bonds}")))
    return lines


def _show_case(case: Case, console: Console) -> None:
    """All contenders on one size of input; of the dense ones the best."""
    length = "" if case.length is None else f", length {case.length}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"batch {case.batch}{length}", no_wrap=True)
    for heading in ("median", "fastest - slowest", "faster", "weights", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = [one for one in case.contenders if one.kind != "dense" or one == case.best_dense]
    for one in shown:
        if one.times_s:
            table.add_row(*_row(case, one))
    console.print(table)
    for one in shown:
        if one.unavailable:
            said = Text(printable(f"{one.contender}: not available, {one.unavailable}"))
            console.print(Padding(said, (0, 0, 0, 2)), highlight=False)


def _row(case: Case, one: Timed) -> tuple[str, ...]:
    ratio = case.times_faster(one) or 0.0
    return (
        one.contender,
        seconds(one.median_s),
        seconds(min(one.times_s), max(one.times_s)),
        f"{ratio:.{2 if ratio < 10 else 1}f}x",
        shown_size(one.size_bytes),
        "-" if one.largest_difference is None else f"{one.largest_difference:.1e}",
    )

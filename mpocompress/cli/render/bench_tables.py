"""Tables of a benchmark: one for every layer and size of input."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mpocompress.cli.render.formatting import KIND_NAMES, counted, labelled, seconds, shape_text, sites_label, times
from mpocompress.reports.benchmark import BenchReport, BenchResult, Case, ContenderResult
from mpocompress.text import listed, printable, shown_size


def show_bench(report: BenchReport, console: Console) -> None:
    """Print a benchmark.

    Args:
        report: the report.
        console: the console.
    """
    machine = report.machine
    threads = counted(machine.threads, "thread", "threads")
    console.print(
        Text(printable(f"{report.file} on {machine.processor}, {machine.device}, {threads}, torch {machine.torch}")),
        highlight=False,
    )
    for result in report.results:
        console.print()
        for line in _heading(report, result):
            console.print(line, highlight=False)
        for case in result.cases:
            console.print()
            _show_case(case, console)
    console.print()
    console.print(
        "Times are medians of interleaved samples of one run. The dense row is the fastest of torch's implementations; "
        "its weights are the products of the cores. The last column is the largest absolute difference of the outputs "
        "to those of the dense layer.",
        highlight=False,
    )
    for note in report.notes:
        console.print(labelled(note), highlight=False)
    console.print(labelled(report.verdict(), "Verdict", "bold"), highlight=False)


def _heading(report: BenchReport, result: BenchResult) -> list[Text]:
    """Return the lines above the tables of a result: the layers, and their cores."""
    smaller = f"{times(result.dense_parameters, result.parameters)} fewer parameters"
    if result.kind == "model":
        layers = counted(len(result.layers), "compressed layer", "compressed layers")
        return [Text(printable(f"{report.model}: {layers}, {smaller} in them"), style="bold")]
    first, *others = [path or "the model" for path in result.layers]
    same = f" (the same for {listed(others)})" if others else ""
    lines = [Text(printable(f"{first}: {KIND_NAMES[result.kind][0]}, {smaller}{same}"), style="bold")]
    for matrix in result.matrices:
        label = sites_label(matrix.row_dims, matrix.col_dims, matrix.anti_aligned)
        bonds = f"{'bond' if len(matrix.bonds) == 1 else 'bonds'} {', '.join(map(str, matrix.bonds))}"
        lines.append(Text(printable(f"  {matrix.name} {shape_text(matrix.shape)}, {label}, {bonds}")))
    return lines


def _show_case(case: Case, console: Console) -> None:
    """Print the contenders on one size of input; of the dense ones only the fastest."""
    length = "" if case.length is None else f", length {case.length}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"batch {case.batch}{length}", no_wrap=True)
    for heading in ("median", "fastest - slowest", "faster", "weights", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    contenders = [each for each in case.contenders if each.kind != "dense" or each.name == case.best_dense]
    for contender in contenders:
        if contender.times_s:
            table.add_row(*_row(contender))
    console.print(table)
    for contender in contenders:
        if contender.unavailable:
            reason = Text(printable(f"{contender.name}: not available, {contender.unavailable}"))
            console.print(Padding(reason, (0, 0, 0, 2)), highlight=False)


def _row(contender: ContenderResult) -> tuple[str, ...]:
    """Return the cells of a contender that ran."""
    median, faster, difference = contender.median_s or 0.0, contender.times_faster or 0.0, contender.largest_difference
    return (
        contender.name,
        seconds(median),
        seconds(min(contender.times_s), max(contender.times_s)),
        f"{faster:.{2 if faster < 10 else 1}f}x",
        shown_size(contender.size_bytes),
        "-" if difference is None else f"{difference:.1e}",
    )

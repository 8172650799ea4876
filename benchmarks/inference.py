"""Speed of compressed layers, the fastest dense implementation of torch, and other tools, in one run.

    python -m benchmarks.inference --markdown table.md --json table.json
    python -m benchmarks.inference --grid --only grid --markdown grid.md

One thread, float32, bond 16, random cores. `benchmarks/README.md` describes the measurement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from benchmarks.inference_grid import BONDS, QUICK_BONDS, Cell, columns, run_grid, worst
from benchmarks.inference_peers import peer_case
from benchmarks.inference_rows import LENGTH, Row, groups, quick_groups
from benchmarks.tables import command_line, environment, markdown_table, rich_table
from mpocompress import __version__
from mpocompress.benchmarking.comparison import Conditions
from mpocompress.cli.render.formatting import seconds
from mpocompress.parallel import blas_threads
from mpocompress.reports.benchmark import Case, ContenderResult
from mpocompress.text import shown_size

WIDTH = 170
HEADER = (
    "layer",
    "cores",
    "best dense",
    "auto",
    "times faster",
    "factorised",
    "materialised",
    "int8",
    "difference",
    "weights",
)
PEER_HEADER = ("LSTM loop", "median", "fastest - slowest", "times faster", "difference", "weights")
LARGE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table and its measurements.

    Args:
        title: Printed above the table.
        header: Names of the columns.
        rows: Cells.
        remarks: Lines printed below the table.
        cases: The measurements as plain values.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str]
    cases: Sequence[dict[str, Any]]


def group_table(name: str, rows: Sequence[Row], conditions: Conditions) -> Table:
    """Measure a group of rows and return its table."""
    cells, cases = [], []
    for row in rows:
        case = row.run(conditions)
        cells.append(row_cells(row, case))
        cases.append({"layer": row.layer, "cores": row.cores, "training": row.training, **msgspec.to_builtins(case)})
        click.echo("  ".join(cells[-1]), err=True)
    return Table(title=TITLES[name], header=HEADER, rows=cells, remarks=unavailable(rows, cases), cases=cases)


TITLES = {
    "lstm": "LSTM, whole sequences",
    "step": "LSTM, one step",
    "linear": "Linear",
    "training": "LSTM, forward and backward",
    "peers": "LSTM of balanced MPOs with two sites, beside other tools",
}


def row_cells(row: Row, case: Case) -> tuple[str, ...]:
    """The cells of a row, with the columns of `HEADER`."""
    timed = {contender.name: contender for contender in case.contenders}
    best, auto, int8 = case.baseline, timed["auto"], timed.get("dynamic int8")
    compressed = [contender for contender in case.contenders if contender.kind == "compressed"]
    return (
        row.layer,
        row.cores,
        f"{seconds(best.median_s or 0.0)} ({best.name.removeprefix('dense, ')})",
        seconds(auto.median_s or 0.0),
        *(ratio(case, timed[mode]) for mode in ("auto", "factorised", "materialised")),
        ratio(case, int8) if int8 is not None else "",
        difference(*compressed),
        f"{shown_size(best.size_bytes)} -> {shown_size(auto.size_bytes)}",
    )


def ratio(case: Case, timed: ContenderResult) -> str:
    """How many times faster than the best dense contender; empty if it did not run."""
    faster = timed.times_faster
    return "" if faster is None else f"{faster:.2f}" if faster < LARGE else f"{faster:.0f}"


def difference(*timed: ContenderResult) -> str:
    """The largest output difference of several contenders, or `not finite`."""
    differences = [contender.largest_difference for contender in timed]
    return "not finite" if None in differences else f"{max(value for value in differences if value is not None):.0e}"


def unavailable(rows: Sequence[Row], cases: Sequence[dict[str, Any]]) -> list[str]:
    """The distinct reasons why contenders did not run."""
    reasons = (
        f"{row.layer}: {contender['name']} not available, {contender['unavailable']}"
        for row, case in zip(rows, cases, strict=True)
        for contender in case["contenders"]
        if contender["unavailable"]
    )
    return list(dict.fromkeys(reasons))


def peer_tables(hidden: int, batches: Sequence[int], length: int, bond: int, conditions: Conditions) -> Iterator[Table]:
    """Every tool in an LSTM loop, and our layer with its own row order."""
    for batch in batches:
        case = peer_case(hidden, batch, length, bond, conditions)
        title = f"{TITLES['peers']}: hidden {hidden}, batch {batch}, length {length}"
        rows = [
            (
                contender.name,
                seconds(contender.median_s or 0.0),
                seconds(min(contender.times_s), max(contender.times_s)),
                ratio(case, contender),
                difference(contender),
                shown_size(contender.size_bytes),
            )
            for contender in case.contenders
            if contender.times_s
        ]
        remarks = [f"{timed.name}: {timed.unavailable}" for timed in case.contenders if timed.unavailable]
        yield Table(
            title=title,
            header=PEER_HEADER,
            rows=rows,
            remarks=remarks,
            cases=[{"layer": title, "cores": "balanced, separate", "training": False, **msgspec.to_builtins(case)}],
        )


def grid_tables(quick: bool, largest: int, conditions: Conditions) -> Iterator[Table]:
    """`auto` over a grid, one table per kind of layer."""
    bonds = QUICK_BONDS if quick else BONDS
    kinds: dict[str, list[Cell]] = {}
    for cell in run_grid(quick, largest, conditions):
        kinds.setdefault(cell.kind, []).append(cell)
        ratios = "  ".join(f"{value:.2f}" for value in cell.ratios.values())
        click.echo(f"{cell.label}: {seconds(cell.case.baseline.median_s or 0.0)}; {ratios}", err=True)
    for kind, cells in kinds.items():
        compressed = [timed for cell in cells for timed in cell.case.contenders if timed.kind == "compressed"]
        yield Table(
            title=f"auto, {kind}: times faster than the best dense contender, by site shape and bond",
            header=(kind, "best dense", *columns(bonds)),
            rows=[
                (
                    cell.label,
                    seconds(cell.case.baseline.median_s or 0.0),
                    *(f"{cell.ratios[name]:.2f}" for name in columns(bonds)),
                )
                for cell in cells
            ],
            remarks=[worst(cells), f"largest difference to the dense twin: {difference(*compressed)}"],
            cases=[
                {"layer": cell.label, "cores": "by contender", "training": False, **msgspec.to_builtins(cell.case)}
                for cell in cells
            ],
        )


def versions() -> list[str]:
    """Names and versions of the installed tools."""
    installed = [name for module, name in DISTRIBUTIONS.items() if util.find_spec(module)]
    return [f"mpocompress {__version__}", *(f"{name} {metadata.version(name)}" for name in installed)]


DISTRIBUTIONS = {"torch": "torch", "tltorch": "tensorly-torch", "torch_mpo": "torch-mpo", "torchtt": "torchTT"}


def joined(facts: dict[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in facts.items())


def as_markdown(tables: Sequence[Table], command: str, facts: dict[str, str], bond: int) -> Iterator[str]:
    """The lines of a page section: the command, the machine, and the tables."""
    yield f"Command: `{command}`; bond {bond}, float32, random cores; {joined(facts)}."
    for table in tables:
        yield from markdown_table(table.title, table.header, table.rows)
        for remark in table.remarks:
            yield from ("", f"{remark}.")


def as_document(tables: Sequence[Table], command: str, facts: dict[str, str], bond: int) -> dict[str, Any]:
    """All measurements as plain values."""
    return {
        "benchmark": "inference",
        "version": 1,
        "command": command,
        "environment": facts,
        "bond": bond,
        "tables": [{"title": table.title, "cases": list(table.cases)} for table in tables],
    }


@click.command()
@click.option("--bond", type=click.IntRange(min=1), default=16, show_default=True, help="Maximum bond.")
@click.option("--quick", is_flag=True, help="A functional test on small layers; its ratios are not meaningful.")
@click.option("--only", multiple=True, type=click.Choice([*TITLES, "grid"]), help="Only this group; repeatable.")
@click.option("--grid", is_flag=True, help="Also measure the grid of `auto`; takes about an hour.")
@click.option(
    "--largest", type=click.IntRange(min=64), default=2048, show_default=True, help="Largest size in the grid."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=21, show_default=True, help="Maximum samples of each contender."
)
@click.option(
    "--seconds", "budget_s", type=float, default=10.0, show_default=True, help="Time for all samples of a row."
)
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables to this file.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures to this file."
)
def main(
    bond: int,
    quick: bool,
    only: tuple[str, ...],
    grid: bool,
    largest: int,
    repeats: int,
    budget_s: float,
    markdown: Path | None,
    json_file: Path | None,
) -> None:
    """Time layers with random cores, dense layers and other tools; print a table for each group."""
    facts, command = environment(versions(), "wall"), command_line("benchmarks/inference.py")
    conditions = Conditions(batches=(), lengths=(), repeats=repeats, device="cpu", progress=None, budget_s=budget_s)
    console = Console(width=WIDTH, highlight=False)
    tables = []
    with blas_threads(1):
        for table in requested_tables(bond, quick, only, grid, largest, conditions):
            tables.append(table)
            console.print(rich_table(table.title, table.header, table.rows, WIDTH))
            for remark in table.remarks:
                console.print(f"  {remark}", markup=False)
    console.print(f"\n{joined(facts)}", markup=False)
    if markdown is not None:
        markdown.write_text("\n".join(as_markdown(tables, command, facts, bond)) + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps(as_document(tables, command, facts, bond), indent=2) + "\n")


def requested_tables(
    bond: int, quick: bool, only: Sequence[str], grid: bool, largest: int, conditions: Conditions
) -> Iterator[Table]:
    """The requested tables, one after another."""
    for name, rows in (quick_groups if quick else groups)(bond).items():
        if not only or name in only:
            yield group_table(name, rows, conditions)
    if not only or "peers" in only:
        yield from peer_tables(64 if quick else 512, (1, 32), 3 if quick else LENGTH, bond, conditions)
    if grid or "grid" in only:
        yield from grid_tables(quick, largest, conditions)


if __name__ == "__main__":
    main()

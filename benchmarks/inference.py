"""Speed of layers that hold cores against the best dense path of torch, and against other tools, in one run.

    python -m benchmarks.inference --markdown table.md --json table.json
    python -m benchmarks.inference --grid --only grid --markdown grid.md

One thread, float32, bond 16, random cores. How the figures are made is in `benchmarks/README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.inference_grid import BONDS, QUICK_BONDS, Cell, columns, run_grid, worst
from benchmarks.inference_peers import peer_case
from benchmarks.inference_rows import LENGTH, Row, groups, quick_groups
from benchmarks.tables import command_line, environment, markdown_table, rich_table
from mpocompress import __version__
from mpocompress.benchmarking.comparison import Conditions
from mpocompress.cli.render.formatting import seconds
from mpocompress.jobs import blas_threads
from mpocompress.reports.benchmark import Case, Timed
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
    """One table, and everything behind it.

    Args:
        title: printed above it.
        header: names of the columns.
        rows: cells.
        remarks: what is said below it, a line each.
        cases: what was measured, as plain values.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str]
    cases: Sequence[dict[str, Any]]


def group_table(name: str, rows: Sequence[Row], conditions: Conditions) -> Table:
    """Measure a group of rows."""
    cells, cases = [], []
    for row in rows:
        case = row.run(conditions)
        cells.append(row_cells(row, case))
        cases.append({"layer": row.layer, "cores": row.cores, "training": row.training, **case.document()})
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
    """The cells of a row, in the order of `HEADER`."""
    timed = {one.contender: one for one in case.contenders}
    best, auto, int8 = case.best_dense, timed["auto"], timed.get("dynamic int8")
    compressed = [one for one in case.contenders if one.kind == "compressed"]
    return (
        row.layer,
        row.cores,
        f"{seconds(best.median_s)} ({best.contender.removeprefix('dense, ')})",
        seconds(auto.median_s),
        *(ratio(case, timed[mode]) for mode in ("auto", "factorised", "materialised")),
        ratio(case, int8) if int8 is not None else "",
        difference(*compressed),
        f"{shown_size(best.size_bytes)} -> {shown_size(auto.size_bytes)}",
    )


def ratio(case: Case, one: Timed) -> str:
    """How many times faster than the best dense path; empty where it did not run."""
    faster = case.times_faster(one)
    return "" if faster is None else f"{faster:.2f}" if faster < LARGE else f"{faster:.0f}"


def difference(*timed: Timed) -> str:
    """The largest difference of several contenders; in words where one is not finite."""
    found = [one.largest_difference for one in timed]
    return "not finite" if None in found else f"{max(one for one in found if one is not None):.0e}"


def unavailable(rows: Sequence[Row], cases: Sequence[dict[str, Any]]) -> list[str]:
    """Why a contender did not run, each reason once."""
    found = (
        f"{row.layer}: {one['contender']} not available, {one['unavailable']}"
        for row, case in zip(rows, cases, strict=True)
        for one in case["contenders"]
        if one["unavailable"]
    )
    return list(dict.fromkeys(found))


def peer_tables(hidden: int, batches: Sequence[int], length: int, bond: int, conditions: Conditions) -> Iterator[Table]:
    """Every tool in an LSTM loop, and our own layer in the shape that it takes by itself."""
    for batch in batches:
        case = peer_case(hidden, batch, length, bond, conditions)
        title = f"{TITLES['peers']}: hidden {hidden}, batch {batch}, length {length}"
        rows = [
            (
                one.contender,
                seconds(one.median_s),
                seconds(min(one.times_s), max(one.times_s)),
                ratio(case, one),
                difference(one),
                shown_size(one.size_bytes),
            )
            for one in case.contenders
            if one.times_s
        ]
        remarks = [f"{one.contender}: {one.unavailable}" for one in case.contenders if one.unavailable]
        yield Table(
            title=title,
            header=PEER_HEADER,
            rows=rows,
            remarks=remarks,
            cases=[{"layer": title, "cores": "balanced, separate", "training": False, **case.document()}],
        )


def grid_tables(quick: bool, largest: int, conditions: Conditions) -> Iterator[Table]:
    """`auto` over a grid, a table for each kind of layer."""
    bonds = QUICK_BONDS if quick else BONDS
    kinds: dict[str, list[Cell]] = {}
    for cell in run_grid(quick, largest, conditions):
        kinds.setdefault(cell.kind, []).append(cell)
        ratios = "  ".join(f"{value:.2f}" for value in cell.ratios.values())
        click.echo(f"{cell.label}: {seconds(cell.case.best_dense.median_s)}; {ratios}", err=True)
    for kind, cells in kinds.items():
        compressed = [one for cell in cells for one in cell.case.contenders if one.kind == "compressed"]
        yield Table(
            title=f"auto, {kind}: times faster than the best dense path, by site shape and bond",
            header=(kind, "best dense", *columns(bonds)),
            rows=[
                (
                    cell.label,
                    seconds(cell.case.best_dense.median_s),
                    *(f"{cell.ratios[name]:.2f}" for name in columns(bonds)),
                )
                for cell in cells
            ],
            remarks=[worst(cells), f"largest difference to the dense twin: {difference(*compressed)}"],
            cases=[
                {"layer": cell.label, "cores": "by contender", "training": False, **cell.case.document()}
                for cell in cells
            ],
        )


def versions() -> list[str]:
    """What the figures depend on."""
    there = [name for module, name in DISTRIBUTIONS.items() if util.find_spec(module)]
    return [f"mpocompress {__version__}", *(f"{name} {metadata.version(name)}" for name in there)]


DISTRIBUTIONS = {"torch": "torch", "tltorch": "tensorly-torch", "torch_mpo": "torch-mpo", "torchtt": "torchTT"}


def in_words(facts: dict[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in facts.items())


def as_markdown(tables: Sequence[Table], command: str, facts: dict[str, str], bond: int) -> Iterator[str]:
    """The lines of a page part: the command, the machine, and the tables."""
    yield f"Made by `{command}`; bond {bond}, float32, random cores; {in_words(facts)}."
    for table in tables:
        yield from markdown_table(table.title, table.header, table.rows)
        for remark in table.remarks:
            yield from ("", f"{remark}.")


def as_document(tables: Sequence[Table], command: str, facts: dict[str, str], bond: int) -> dict[str, Any]:
    """Everything that was measured, as plain values."""
    return {
        "benchmark": "inference",
        "version": 1,
        "command": command,
        "environment": facts,
        "bond": bond,
        "tables": [{"title": table.title, "cases": list(table.cases)} for table in tables],
    }


@click.command()
@click.option("--bond", type=click.IntRange(min=1), default=16, show_default=True, help="Cap of every bond.")
@click.option("--quick", is_flag=True, help="Small layers only: does everything run? Its ratios say nothing.")
@click.option("--only", multiple=True, type=click.Choice([*TITLES, "grid"]), help="Only this part; may be repeated.")
@click.option("--grid", is_flag=True, help="Measure the grid of `auto` too, which takes an hour or so.")
@click.option("--largest", type=click.IntRange(min=64), default=2048, show_default=True, help="Size in the grid.")
@click.option("--repeats", type=click.IntRange(min=1), default=21, show_default=True, help="The most samples of each.")
@click.option("--seconds", "budget_s", type=float, default=10.0, show_default=True, help="For all samples of a row.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables here.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
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
    """Time layers with random cores against dense ones and other tools; print a table for each part."""
    facts, command = environment(versions(), "wall"), command_line("benchmarks/inference.py")
    conditions = Conditions(batches=(), lengths=(), repeats=repeats, device="cpu", progress=None, budget_s=budget_s)
    console = Console(width=WIDTH, highlight=False)
    tables = []
    with blas_threads(1):
        for table in measured(bond, quick, only, grid, largest, conditions):
            tables.append(table)
            console.print(rich_table(table.title, table.header, table.rows, WIDTH))
            for remark in table.remarks:
                console.print(f"  {remark}", markup=False)
    console.print(f"\n{in_words(facts)}", markup=False)
    if markdown is not None:
        markdown.write_text("\n".join(as_markdown(tables, command, facts, bond)) + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps(as_document(tables, command, facts, bond), indent=2) + "\n")


def measured(
    bond: int, quick: bool, only: Sequence[str], grid: bool, largest: int, conditions: Conditions
) -> Iterator[Table]:
    """The tables that are asked for, one after another."""
    for name, rows in (quick_groups if quick else groups)(bond).items():
        if not only or name in only:
            yield group_table(name, rows, conditions)
    if not only or "peers" in only:
        yield from peer_tables(64 if quick else 512, (1, 32), 3 if quick else LENGTH, bond, conditions)
    if grid or "grid" in only:
        yield from grid_tables(quick, largest, conditions)


if __name__ == "__main__":
    main()

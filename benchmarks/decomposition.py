"""Time and error of the decomposition of one matrix, by mpocompress and by other tools, in one run.

    python benchmarks/decomposition.py --markdown table.md --json table.json

One thread, float32, every bond capped at 16. `benchmarks/README.md` describes the measurement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import click
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.peers import BASELINE, CONTENDERS, EXACT, Contender
from benchmarks.tables import WIDTH, command_line, environment, markdown_table, rich_table
from benchmarks.timing import Clock, Failure, Timing, format_seconds, interleave, times_faster
from mpocompress import MPO, Sites

Weights = Literal["gaussian", "power law"]
WEIGHTS: tuple[Weights, ...] = ("gaussian", "power law")
EXPONENT = 0.5
SHAPES = (
    Sites(row_dims=(32, 32), col_dims=(32, 32)),
    Sites(row_dims=(64, 64), col_dims=(64, 64)),
    Sites(row_dims=(16, 16, 16), col_dims=(16, 16, 16)),
    Sites(row_dims=(8, 8, 8, 8), col_dims=(8, 8, 8, 8)),
    Sites(row_dims=(128, 86), col_dims=(64, 64)),
)
WARM_UP = Sites(row_dims=(4, 4), col_dims=(4, 4))
QUICK_SHAPES = (
    Sites(row_dims=(16, 16), col_dims=(16, 16)),
    Sites(row_dims=(8, 8, 8), col_dims=(8, 8, 8)),
    Sites(row_dims=(4, 4, 4, 4), col_dims=(4, 4, 4, 4)),
    Sites(row_dims=(43, 16), col_dims=(16, 16)),
)
LARGE = 10
HEADER = ("tool", "median", "from - to", "runs", "times faster", "relative error", "above exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tool on one matrix.

    Args:
        tool: Name of the tool.
        reason: Why there are no figures, or None.
        times_s: Seconds of every run.
        median_s: Their median.
        times_faster: Median of the baseline over the median of the tool; None without a baseline.
        relative_error: Relative error (Frobenius norm) against the dense matrix.
        above_exact: Relative error divided by that of the full SVD at every cut, minus 1; None without that.
    """

    tool: str
    reason: str | None = None
    times_s: tuple[float, ...] = ()
    median_s: float | None = None
    times_faster: float | None = None
    relative_error: float | None = None
    above_exact: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row of the table, with the columns of `HEADER`."""
        if self.reason is not None or self.median_s is None or self.relative_error is None:
            return (self.tool, self.reason or "", "", "", "", "", "")
        faster = self.times_faster
        return (
            self.tool,
            format_seconds(self.median_s),
            format_seconds(min(self.times_s), max(self.times_s)),
            str(len(self.times_s)),
            "" if faster is None else f"{faster:.2f}" if faster < LARGE else f"{faster:.0f}",
            f"{self.relative_error:.5f}",
            "" if self.above_exact is None else f"{round(100 * self.above_exact, 3) + 0.0:.3f} %",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All tools on one matrix.

    Args:
        sites: Its site shape.
        weights: Its distribution.
        entries: One entry per tool.
    """

    sites: Sites
    weights: Weights
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Shape, number of sites and distribution."""
        return title(self.sites, self.weights)


def title(sites: Sites, weights: Weights) -> str:
    rows, cols = sites.shape
    return f"{rows} x {cols}, {len(sites.dims)} sites, {weights}"


def draw(sites: Sites, weights: Weights, seed: int) -> Tensor:
    """A float32 matrix of unit norm whose first unfolding is Gaussian or has a power-law spectrum.

    Args:
        sites: The site shape, in tensorly's order of the row index.
        weights: `gaussian` is the hardest case, because it has the flattest spectrum; `power law` is G diag(1/i^0.5) H
            with Gaussian G and H.
        seed: Seed of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    count, first = len(sites.dims), sites.dims[0]
    others = math.prod(sites.dims[1:])
    if weights == "gaussian":
        unfolding = torch.randn(first, others, generator=generator)
    else:
        inner = min(first, others)
        scale = torch.arange(1, inner + 1, dtype=torch.float32) ** -EXPONENT
        left = torch.randn(first, inner, generator=generator)
        unfolding = (left * scale) @ torch.randn(inner, others, generator=generator)
    indices = unfolding.reshape([dim for pair in zip(sites.row_dims, sites.col_dims, strict=True) for dim in pair])
    rows, cols = [2 * site for site in range(count)], [2 * site + 1 for site in range(count)]
    matrix = indices.permute([*rows, *cols]).reshape(sites.shape)
    return matrix.div(torch.linalg.vector_norm(matrix))


def measured_error(weight: Tensor, cores: Sequence[Tensor], sites: Sites) -> float:
    dense = MPO(cores=tuple(cores), sites=sites).to_matrix()
    return float(torch.linalg.vector_norm((dense - weight).double()) / torch.linalg.vector_norm(weight.double()))


def run_case(
    sites: Sites,
    weights: Weights,
    contenders: Sequence[Contender],
    *,
    bond: int,
    seed: int,
    repeats: int,
    slow_repeats: int,
    slow_s: float,
    clock: Clock,
) -> Case:
    """Measure time and error of every tool on one matrix, with interleaved repeats.

    Args:
        sites: The site shape.
        weights: The distribution of the matrix.
        contenders: The tools.
        bond: Maximum bond.
        seed: Seed of the matrix.
        repeats: See `timing.interleave`, also for the next three.
        slow_repeats: Number of runs of a slow tool.
        slow_s: Seconds above which a tool is slow.
        clock: Processor time or wall time.
    """
    weight = draw(sites, weights, seed)
    tasks = {tool.name: task(tool, weight, sites, bond) for tool in contenders if not tool.missing}
    outcomes = interleave(
        tasks,
        repeats=repeats,
        slow_repeats=slow_repeats,
        slow_s=slow_s,
        clock=clock,
        on_run=lambda name, seconds: click.echo(f"{title(sites, weights)}: {name} {format_seconds(seconds)}", err=True),
    )
    timings = {name: timing for name, timing in outcomes.items() if isinstance(timing, Timing)}
    errors = {
        tool.name: measured_error(weight, tool.cores(timings[tool.name].result, sites), sites)
        for tool in contenders
        if tool.name in timings
    }
    exact = errors.get(EXACT, errors.get(BASELINE))
    entries = []
    for tool in contenders:
        outcome = outcomes.get(tool.name)
        if isinstance(outcome, Timing):
            entry = Entry(
                tool=tool.name,
                times_s=outcome.times_s,
                median_s=outcome.median_s,
                times_faster=times_faster(outcome, timings[BASELINE]) if BASELINE in timings else None,
                relative_error=errors[tool.name],
                above_exact=errors[tool.name] / exact - 1 if exact else None,
            )
        else:
            entry = Entry(tool=tool.name, reason=outcome.reason if isinstance(outcome, Failure) else tool.missing)
        entries.append(entry)
    return Case(sites=sites, weights=weights, entries=tuple(entries))


def task(tool: Contender, weight: Tensor, sites: Sites, bond: int) -> Callable[[], Any]:
    return lambda: tool.decompose(weight, sites, bond)


def joined(facts: dict[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in facts.items())


def as_markdown(cases: Sequence[Case], command: str, facts: dict[str, str], bond: int) -> Iterator[str]:
    """The lines of a page section: the command, the machine, and a table for every matrix."""
    yield f"Command: `{command}`; bond {bond}, float32; {joined(facts)}."
    for case in cases:
        yield from markdown_table(case.title, HEADER, [entry.cells() for entry in case.entries])


def as_document(cases: Sequence[Case], command: str, facts: dict[str, str], bond: int) -> dict[str, Any]:
    """All measurements as plain values."""
    return {
        "benchmark": "decomposition",
        "version": 1,
        "command": command,
        "environment": facts,
        "bond": bond,
        "baseline": BASELINE,
        "exact": EXACT,
        "cases": [
            {
                "shape": list(case.sites.shape),
                "row_dims": list(case.sites.row_dims),
                "col_dims": list(case.sites.col_dims),
                "weights": case.weights,
                "entries": [
                    {name: getattr(entry, name) for name in Entry.__slots__} | {"times_s": list(entry.times_s)}
                    for entry in case.entries
                ],
            }
            for case in cases
        ],
    }


@click.command()
@click.option("--bond", type=click.IntRange(min=1), default=16, show_default=True, help="Maximum bond.")
@click.option("--quick", is_flag=True, help="A functional test on small shapes; its ratios are not meaningful.")
@click.option(
    "--tool",
    "names",
    multiple=True,
    type=click.Choice([tool.name for tool in CONTENDERS]),
    help="Only this tool; repeatable.",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=9, show_default=True, help="Minimum runs of a fast tool."
)
@click.option("--slow-repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of a slow tool.")
@click.option("--slow-seconds", type=float, default=5.0, show_default=True, help="A longer run is slow.")
@click.option(
    "--clock", type=click.Choice(["cpu", "wall"]), default="cpu", show_default=True, help="Processor or wall time."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the matrices.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables to this file.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures to this file."
)
def main(
    bond: int,
    quick: bool,
    names: tuple[str, ...],
    repeats: int,
    slow_repeats: int,
    slow_seconds: float,
    clock: str,
    seed: int,
    markdown: Path | None,
    json_file: Path | None,
) -> None:
    """Decompose seeded matrices with every installed tool; print a table for each matrix."""
    torch.set_num_threads(1)
    chosen_clock = cast("Clock", clock)
    contenders = [tool for tool in CONTENDERS if not names or tool.name in names]
    facts = environment([tool.version for tool in contenders if tool.version], chosen_clock)
    command = command_line("benchmarks/decomposition.py")
    console = Console(width=WIDTH, highlight=False)
    # The first call of a tool pays for its imports.
    first_calls = {tool.name: task(tool, torch.eye(16), WARM_UP, 2) for tool in contenders if not tool.missing}
    interleave(first_calls, repeats=1, slow_repeats=1, slow_s=math.inf)
    cases = []
    for sites in QUICK_SHAPES if quick else SHAPES:
        for weights in WEIGHTS:
            case = run_case(
                sites,
                weights,
                contenders,
                bond=bond,
                seed=seed,
                repeats=repeats,
                slow_repeats=slow_repeats,
                slow_s=slow_seconds,
                clock=chosen_clock,
            )
            cases.append(case)
            measured_rows = [entry.cells() for entry in case.entries if entry.reason is None]
            console.print(rich_table(case.title, HEADER, measured_rows))
            for entry in case.entries:
                if entry.reason is not None:
                    console.print(f"  {entry.tool}: {entry.reason}", markup=False)
    console.print(f"\n{joined(facts)}", markup=False)
    if markdown is not None:
        markdown.write_text("\n".join(as_markdown(cases, command, facts, bond)) + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps(as_document(cases, command, facts, bond), indent=2) + "\n")


if __name__ == "__main__":
    main()

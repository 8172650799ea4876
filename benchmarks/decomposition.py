"""Speed and error of the decomposition of one matrix, against the tools that do the same, in one run.

    python benchmarks/decomposition.py --markdown table.md --json table.json

One thread, float32, every bond capped at 16. How the figures are made is in `benchmarks/README.md`.
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
        tool: its name.
        reason: why there are no figures; None when there are.
        times_s: seconds of every run.
        median_s: their median.
        times_faster: than the baseline; None without a baseline.
        relative_error: Frobenius norm of the difference to the dense matrix over the norm of that.
        above_exact: relative error over that of the full SVD in every cut, minus 1; None without that.
    """

    tool: str
    reason: str | None = None
    times_s: tuple[float, ...] = ()
    median_s: float | None = None
    times_faster: float | None = None
    relative_error: float | None = None
    above_exact: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row of the table, in the order of `HEADER`."""
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
        sites: its site shape.
        weights: how it was drawn.
        entries: one for every tool.
    """

    sites: Sites
    weights: Weights
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Shape, sites and weights in words."""
        return title(self.sites, self.weights)


def title(sites: Sites, weights: Weights) -> str:
    rows, cols = sites.shape
    return f"{rows} x {cols}, {len(sites.dims)} sites, {weights}"


def draw(sites: Sites, weights: Weights, seed: int) -> Tensor:
    """A matrix of unit norm whose first unfolding is Gaussian, or has a spectrum that falls like a power of the index.

    Args:
        sites: the site shape, in tensorly's order of the row index.
        weights: `gaussian` is the hard case, since no spectrum is flatter; `power law` is G diag(1/i^0.5) H with
            Gaussian G and H.
        seed: of the generator; the same seed gives the same matrix.

    Returns:
        A contiguous float32 matrix.
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
    digits = unfolding.reshape([dim for pair in zip(sites.row_dims, sites.col_dims, strict=True) for dim in pair])
    rows, cols = [2 * site for site in range(count)], [2 * site + 1 for site in range(count)]
    matrix = digits.permute([*rows, *cols]).reshape(sites.shape)
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
    """Time every tool on one matrix, interleaved, and measure what each got.

    Args:
        sites: the site shape.
        weights: how to draw the matrix.
        contenders: the tools.
        bond: cap of every bond.
        seed: of the matrix.
        repeats: see `timing.interleave`, as for the next three.
        slow_repeats: number of runs of a slow tool.
        slow_s: seconds above which a tool is slow.
        clock: what is measured.

    Returns:
        The case, one entry for every tool, in their order.
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


def in_words(facts: dict[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in facts.items())


def as_markdown(cases: Sequence[Case], command: str, facts: dict[str, str], bond: int) -> Iterator[str]:
    """The lines of a page part: the command, the machine, and a table for every matrix."""
    yield f"Made by `{command}`; bond {bond}, float32; {in_words(facts)}."
    for case in cases:
        yield from markdown_table(case.title, HEADER, [entry.cells() for entry in case.entries])


def as_document(cases: Sequence[Case], command: str, facts: dict[str, str], bond: int) -> dict[str, Any]:
    """Everything that was measured, as plain values."""
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
@click.option("--bond", type=click.IntRange(min=1), default=16, show_default=True, help="Cap of every bond.")
@click.option("--quick", is_flag=True, help="Small shapes only: does everything run? Its ratios say nothing.")
@click.option(
    "--tool",
    "names",
    multiple=True,
    type=click.Choice([tool.name for tool in CONTENDERS]),
    help="Only this tool; may be repeated.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=9, show_default=True, help="Least runs of a fast tool.")
@click.option("--slow-repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of a slow tool.")
@click.option("--slow-seconds", type=float, default=5.0, show_default=True, help="A run longer than this is slow.")
@click.option("--clock", type=click.Choice(["cpu", "wall"]), default="cpu", show_default=True, help="What is measured.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the matrices.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables here.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
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
    """Decompose seeded matrices with every tool that is installed; print a table for each."""
    torch.set_num_threads(1)
    measured = cast("Clock", clock)
    contenders = [tool for tool in CONTENDERS if not names or tool.name in names]
    facts = environment([tool.version for tool in contenders if tool.version], measured)
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
                clock=measured,
            )
            cases.append(case)
            measured_rows = [entry.cells() for entry in case.entries if entry.reason is None]
            console.print(rich_table(case.title, HEADER, measured_rows))
            for entry in case.entries:
                if entry.reason is not None:
                    console.print(f"  {entry.tool}: {entry.reason}", markup=False)
    console.print(f"\n{in_words(facts)}", markup=False)
    if markdown is not None:
        markdown.write_text("\n".join(as_markdown(cases, command, facts, bond)) + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps(as_document(cases, command, facts, bond), indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Compress checkpoints at several targets and verify the report independently.

For each checkpoint and target: compress twice with different numbers of jobs (the bytes must be equal), inspect,
expand, and compare the expanded tensors with the original ones, using only torch and safetensors. The exit code is 1 if
a check fails.

    python benchmarks/checkpoints.py model.safetensors other.pt --markdown table.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

import mpocompress
from mpocompress import Report, Truncation

TARGETS: Mapping[str, Truncation] = {
    "--bond 16": Truncation(max_bond=16),
    "--keep 0.25": Truncation(keep=0.25),
    "--max-error 0.1": Truncation(max_error=0.1),
    "--energy 0.9": Truncation(energy=0.9),
}


def main() -> int:
    """Run every target on every checkpoint; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    rows, failures = [], 0
    for checkpoint in arguments.checkpoints:
        for name, truncation in TARGETS.items():
            row, problems = _try(checkpoint, name, truncation)
            rows.append(row)
            failures += len(problems)
            for problem in problems:
                print(f"FAILED {checkpoint.name} {name}: {problem}", file=sys.stderr)
    _show(rows, arguments.markdown)
    return 1 if failures else 0


HEADINGS = ("checkpoint", "target", "achieved", "eligible", "after", "file", "error", "largest deviation", "s")


def _try(source: Path, name: str, truncation: Truncation) -> tuple[tuple[str, ...], list[str]]:
    """Compress one checkpoint to one target; return the row of the table and the failed checks."""
    with tempfile.TemporaryDirectory() as folder:
        small, again = Path(folder, "small" + source.suffix), Path(folder, "again" + source.suffix)
        dense = Path(folder, "dense" + source.suffix)
        start = time.perf_counter()
        report = mpocompress.compress(source, small, truncation=truncation, jobs=2)
        seconds = time.perf_counter() - start
        mpocompress.compress(source, again, truncation=truncation, jobs=1)
        problems = [] if small.read_bytes() == again.read_bytes() else ["different bytes with another number of jobs"]
        if mpocompress.inspect(small) != report:
            problems.append("inspect returns another report")
        mpocompress.expand(small, dense)
        deviation, differences = _compare(_load(source), _load(dense), report)
        problems += differences
    totals, target = report.totals, report.target
    if target is None or not _is_met(truncation, report):
        problems.append(f"target {truncation.target.value}, achieved {target.achieved if target else None}")
    row = (
        source.name,
        name,
        "none" if target is None or target.achieved is None else f"{target.achieved:.4g}",
        f"{totals.eligible_parameters:,}",
        f"{totals.eligible_parameters_after:,}",
        f"{totals.file_size_bytes_before:,} -> {totals.file_size_bytes_after:,}",
        f"{report.relative_error:.4f}",
        f"{deviation:.1e}",
        f"{seconds:.1f}",
    )
    return row, problems


def _compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor], report: Report) -> tuple[float, list[str]]:
    """Return the largest relative deviation of a reported error, and all differences that are not allowed."""
    problems = [] if set(before) == set(after) else ["different tensor names"]
    members = {name for matrix in report.compressed for name in matrix.members}
    problems += [
        f"{name} changed" for name in before if name not in members and not torch.equal(before[name], after[name])
    ]
    deviation = 0.0
    for matrix in report.compressed:
        dense = torch.cat([before[name].double() for name in matrix.members], dim=1)
        rebuilt = torch.cat([after[name].double() for name in matrix.members], dim=1)
        measured = float((dense - rebuilt).norm() / dense.norm())
        deviation = max(deviation, abs(matrix.relative_error / measured - 1))
        summed = (sum(matrix.discarded_weights) / matrix.squared_norm) ** 0.5
        if abs(summed**2 - measured**2) > 1e-5:
            problems.append(f"{matrix.name}: discarded weights give {summed:.6f}, measured {measured:.6f}")
    return deviation, [*problems, *([f"an error is off by {deviation:.1e}"] if deviation > 1e-3 else [])]


def _is_met(truncation: Truncation, report: Report) -> bool:
    """Whether the target is met, according to the entries of the report."""
    value = truncation.target.value or 0.0
    checks: Mapping[str, Callable[[], bool]] = {
        "bond": lambda: all(max(m.bonds) <= value for m in report.compressed),
        "keep": lambda: _within_one_step(report, value),
        "max_error": lambda: all(m.relative_error <= value for m in report.compressed),
        "energy": lambda: all(1 - m.relative_error**2 >= value for m in report.compressed),
    }
    return checks[truncation.target.kind]()


def _within_one_step(report: Report, keep: float) -> bool:
    """Whether the budget is met and no single bond can be increased by one within it."""
    unused = keep * report.totals.eligible_parameters - report.totals.eligible_parameters_after
    steps = [
        matrix.sites.parameters([bond + (index == cut) for index, bond in enumerate(matrix.bonds)]) - matrix.parameters
        for matrix in report.compressed
        for cut in range(len(matrix.bonds))
    ]
    return 0 <= unused < min(steps, default=float("inf"))


def _load(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    content = torch.load(path, weights_only=True)
    return next((content[key] for key in ("state_dict", "model_state_dict", "model_state") if key in content), content)


def _show(rows: list[tuple[str, ...]], markdown: Path | None) -> None:
    table = Table(*HEADINGS, box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)
    if markdown is not None:
        lines = [HEADINGS, ("---",) * len(HEADINGS), *rows]
        markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())

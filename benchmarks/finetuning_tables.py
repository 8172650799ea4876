"""How the measurements of `benchmarks/finetuning.py` are shown, over all seeds, and beside what was asked for."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.finetuning_ledger import Described, Ledger
from benchmarks.finetuning_rows import Row
from benchmarks.finetuning_settings import AHEAD_AT, CPU_S, GOALS, METHODS, RIVALS
from benchmarks.quality_rows import DATA_AWARE, FRACTIONS

HEADER = ("method", "keep", "parameters", "untuned", "tuned", "least .. most", "CPU s", "wall s", "steps")
SHORT = ("method", "keep", "untuned", "tuned", "least .. most")
GOALS_HEADER = ("goal", "asked", "reached", "")

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
Group = tuple[str, str]
"""A fraction and a method."""


def tables(model: Described, rows: Sequence[Row]) -> Iterator[Table]:
    """The measurements of a model: each figure by fraction and method, the median over all seeds.

    Args:
        model: the model.
        rows: its measurements.

    Yields:
        Title, header, rows.
    """
    better = "larger" if model.larger_is_better else "smaller"
    for place, figure in enumerate(model.figures):
        title = f"{model.name}: {figure}, {better} is better; dense {model.shown(model.dense[place])}"
        if not place:
            title += f"; one answer to everything {model.shown(model.constant)}"
        cells: list[tuple[str, ...]] = []
        for (keep, method), group in _groups(rows).items():
            tuned = [row.tuned[place] for row in group]
            measured = (
                model.shown(group[0].untuned[place]),
                model.shown(statistics.median(tuned)),
                f"{model.shown(min(tuned))} .. {model.shown(max(tuned))}",
            )
            if place:
                cells.append((method, keep, *measured))
                continue
            spent = (statistics.median(row.cpu_s for row in group), statistics.median(row.wall_s for row in group))
            steps = sorted({row.steps for row in group})
            cells.append(
                (
                    method,
                    keep,
                    f"{group[0].parameters:,}",
                    *measured,
                    *(f"{seconds:.1f}" for seconds in spent),
                    f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} .. {steps[-1]}",
                )
            )
        yield title, SHORT if place else HEADER, cells


def notes(model: Described, rows: Sequence[Row]) -> Iterator[str]:
    """What a reader of the tables of a model has to know, a sentence or two each."""
    yield f"{model.name}: {model.note}."
    each = model.settings
    batch = f"{each.batch} streams of {each.length} characters" if each.length else f"{each.batch} samples"
    others = "".join(f" ({steps} at {keep})" for keep, steps in each.steps_at.items())
    memory = "with" if each.carry_state else "without"
    yield (
        f"{rows[0].dense_parameters:,} parameters in the compressed layers. Fine-tuning: at most {each.steps}{others} "
        f"steps of {each.batches_per_step} x {batch}, {memory} the memory carried on, "
        f"{each.held_out} batches held out; seeds {', '.join(map(str, sorted({row.seed for row in rows})))}."
    )
    precisions: dict[str, dict[str, None]] = {}
    for (keep, method), group in _groups(rows).items():
        for row in group:
            precisions.setdefault(row.precision, {})[f"{method} at {keep}"] = None
    alike = len(precisions) == 1
    said = (each if alike else f"{each} ({', '.join(of)})" for each, of in precisions.items())
    yield f"Products in training: {'; '.join(said)}."


def verdicts(ledger: Ledger) -> Iterator[tuple[str, ...]]:
    """Every goal that something was measured for: what it is, its number, what was reached, and whether that is enough.

    Scores are medians over the seeds, times those of the slowest seed.

    Args:
        ledger: all measurements.
    """
    for name, model in ledger.models.items():
        groups = _groups(ledger.of(name))
        ours = {keep: _median(group) for (keep, method), group in groups.items() if method == DATA_AWARE}
        for keep, goal in GOALS[name].items():
            if keep in ours:
                enough = not _ahead(model, goal, ours[keep])
                yield f"{name}, keep {keep}", f"{goal:g}", f"{ours[keep]:.4g}", _verdict(enough)
        for keep in ours:
            if keep in GOALS[name]:
                spent = max(row.cpu_s for row in groups[keep, DATA_AWARE])
                asked = f"{CPU_S[name]:g} CPU s"
                yield f"{name}, keep {keep}, time", asked, f"{spent:.1f} CPU s", _verdict(spent <= CPU_S[name])
        for keep, reached in ours.items():
            for rival in RIVALS:
                if (keep, rival) in groups and FRACTIONS[keep] <= FRACTIONS[AHEAD_AT]:
                    theirs = _median(groups[keep, rival])
                    enough = _ahead(model, reached, theirs)
                    yield f"{name}, keep {keep}, ahead of {rival}", f"{theirs:.4g}", f"{reached:.4g}", _verdict(enough)


def _groups(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Rows that differ in their seeds alone, larger fractions first."""
    found: dict[Group, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-FRACTIONS[row.keep], METHODS.index(row.method), row.seed)):
        found.setdefault((row.keep, row.method), []).append(row)
    return found


def _median(rows: Sequence[Row]) -> float:
    return statistics.median(row.tuned[0] for row in rows)


def _ahead(model: Described, one: float, other: float) -> bool:
    """Whether a main figure is better than another."""
    return one > other if model.larger_is_better else one < other


def _verdict(enough: bool) -> str:
    return "reached" if enough else "MISSED"

"""The tables of `benchmarks/finetuning.py`, over all seeds, and the comparison with the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.finetuning_ledger import Described, Ledger
from benchmarks.finetuning_rows import Row
from benchmarks.finetuning_settings import AHEAD_AT, CPU_S, GOALS, METHODS, RIVALS
from benchmarks.quality_rows import DATA_AWARE, FRACTIONS

HEADER = ("method", "keep", "parameters", "before", "after", "min .. max", "CPU s", "wall s", "steps")
SHORT = ("method", "keep", "before", "after", "min .. max")
GOALS_HEADER = ("goal", "required", "measured", "")

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
Group = tuple[str, str]
"""A fraction and a method."""


def tables(model: Described, rows: Sequence[Row]) -> Iterator[Table]:
    """The tables of a model, as title, header and rows: the median of each score by fraction and method."""
    better = "larger" if model.larger_is_better else "smaller"
    for index, figure in enumerate(model.figures):
        title = f"{model.name}: {figure}, {better} is better; dense {model.shown(model.dense[index])}"
        if not index:
            title += f"; constant output {model.shown(model.constant)}"
        cells: list[tuple[str, ...]] = []
        for (keep, method), group in _groups(rows).items():
            after = [row.after[index] for row in group]
            measured = (
                model.shown(group[0].before[index]),
                model.shown(statistics.median(after)),
                f"{model.shown(min(after))} .. {model.shown(max(after))}",
            )
            if index:
                cells.append((method, keep, *measured))
                continue
            times_s = (statistics.median(row.cpu_s for row in group), statistics.median(row.wall_s for row in group))
            steps = sorted({row.steps for row in group})
            cells.append(
                (
                    method,
                    keep,
                    f"{group[0].parameters:,}",
                    *measured,
                    *(f"{seconds:.1f}" for seconds in times_s),
                    f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} .. {steps[-1]}",
                )
            )
        yield title, SHORT if index else HEADER, cells


def notes(model: Described, rows: Sequence[Row]) -> Iterator[str]:
    """Description of the tables of a model, one or two sentences settings."""
    yield f"{model.name}: {model.note}."
    settings = model.settings
    batch = (
        f"{settings.batch} streams of {settings.length} characters" if settings.length else f"{settings.batch} samples"
    )
    exceptions = "".join(f" ({steps} at {keep})" for keep, steps in settings.steps_at.items())
    state = "with" if settings.carry_state else "without"
    yield (
        f"{rows[0].dense_parameters:,} parameters in the compressed layers. "
        f"Fine-tuning: at most {settings.steps}{exceptions} "
        f"steps of {settings.batches_per_step} x {batch}, {state} carried state, "
        f"{settings.held_out} batches held out; seeds {', '.join(map(str, sorted({row.seed for row in rows})))}."
    )
    precisions: dict[str, dict[str, None]] = {}
    for (keep, method), group in _groups(rows).items():
        for row in group:
            precisions.setdefault(row.precision, {})[f"{method} at {keep}"] = None
    if len(precisions) == 1:
        shown = list(precisions)
    else:
        shown = [f"{precision} ({', '.join(methods)})" for precision, methods in precisions.items()]
    yield f"Products in training: {'; '.join(shown)}."


def verdicts(ledger: Ledger) -> Iterator[tuple[str, ...]]:
    """Every goal that was measured: its name, the goal, the result, and whether it is reached.

    Scores are medians over the seeds, and times those of the slowest seed.
    """
    for name, model in ledger.models.items():
        groups = _groups(ledger.of(name))
        calibrated = {keep: _median(group) for (keep, method), group in groups.items() if method == DATA_AWARE}
        for keep, goal in GOALS[name].items():
            if keep in calibrated:
                is_reached = not _ahead(model, goal, calibrated[keep])
                yield f"{name}, keep {keep}", f"{goal:g}", f"{calibrated[keep]:.4g}", _verdict(is_reached)
        for keep in calibrated:
            if keep in GOALS[name]:
                cpu_s = max(row.cpu_s for row in groups[keep, DATA_AWARE])
                limit = f"{CPU_S[name]:g} CPU s"
                yield f"{name}, keep {keep}, time", limit, f"{cpu_s:.1f} CPU s", _verdict(cpu_s <= CPU_S[name])
        for keep, median in calibrated.items():
            for rival in RIVALS:
                if (keep, rival) in groups and FRACTIONS[keep] <= FRACTIONS[AHEAD_AT]:
                    rival_median = _median(groups[keep, rival])
                    is_reached = _ahead(model, median, rival_median)
                    yield (
                        f"{name}, keep {keep}, ahead of {rival}",
                        f"{rival_median:.4g}",
                        f"{median:.4g}",
                        _verdict(is_reached),
                    )


def _groups(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Rows that differ only in their seeds, larger fractions first."""
    groups: dict[Group, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-FRACTIONS[row.keep], METHODS.index(row.method), row.seed)):
        groups.setdefault((row.keep, row.method), []).append(row)
    return groups


def _median(rows: Sequence[Row]) -> float:
    return statistics.median(row.after[0] for row in rows)


def _ahead(model: Described, score: float, other: float) -> bool:
    """Whether a score is better than another."""
    return score > other if model.larger_is_better else score < other


def _verdict(is_reached: bool) -> str:
    return "reached" if is_reached else "MISSED"

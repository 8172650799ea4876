"""Layers fitted in the order in which they run, each on the inputs that it gets after the ones before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.calibration.hooks import Unit, Watch, Watcher, arguments, watched
from mpocompress.calibration.lstm_forward import LevelRun, level_names, level_weights, opened, run_level
from mpocompress.calibration.rig import Rig
from mpocompress.mpo.metric import shrunk
from mpocompress.user.batches import Batch

ROUNDS = 2
"""How often a recurrent layer is run again with what was fitted to its last run."""
RIDGE = 0.3
"""Share of the mean variance of its inputs that a direction needs for half of its correction: without, corrections
learn the calibration inputs by heart."""


class CrossMoments:
    """Sums over samples of the inputs of a weight before and after compression.

    Args:
        cols: inputs of the weight.
    """

    def __init__(self, cols: int) -> None:
        self.cross = torch.zeros(cols, cols, dtype=torch.float64)
        self.second = torch.zeros(cols, cols, dtype=torch.float64)
        self.mean_before = torch.zeros(cols, dtype=torch.float64)
        self.mean_after = torch.zeros(cols, dtype=torch.float64)
        self.count = 0

    def add(
        self,
        before: Tensor,  # shape: (samples, cols)
        after: Tensor,  # shape: (samples, cols)
    ) -> None:
        """Add samples.

        Args:
            before: what the weight of the original model gets.
            after: what it gets in the compressed model.
        """
        wide = torch.promote_types(after.dtype, torch.float32)  # half types would overflow
        before, after = before.to(wide), after.to(wide)
        both = torch.cat([before, after], dim=1).T @ after
        cols = before.shape[1]
        self.cross += both[:cols].double().cpu()
        self.second += both[cols:].double().cpu()
        self.mean_before += before.double().sum(dim=0).cpu()
        self.mean_after += after.double().sum(dim=0).cpu()
        self.count += len(before)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """What a matrix is fitted to.

    Args:
        weight: the matrix that the cores should be, float64, shape (rows, cols).
        second: the second moment that errors are measured with, positive definite, shape (cols, cols).
        mean_before: mean input that the original bias belongs to, shape (cols,).
        mean_after: mean input of the compressed layer, shape (cols,).
    """

    weight: Tensor
    second: Tensor
    mean_before: Tensor
    mean_after: Tensor


def shifted_target(
    weight: Tensor,  # shape: (rows, cols)
    moments: CrossMoments,
    span: tuple[int, int],
    *,
    mix: float,
    centred: bool,
) -> Target:
    """The matrix that gives, on the inputs of the compressed model, what the original gives on its own.

    Args:
        weight: the original matrix.
        moments: of the inputs of its unit.
        span: its columns among those.
        mix: weight of what the original would give on the inputs of the compressed model; the rest goes to what it
            gives on its own inputs. 1 corrects nothing.
        centred: whether a bias takes up means.

    Returns:
        The least-squares solution and its metric.
    """
    start, stop = span
    before, after = (one[start:stop] / moments.count for one in (moments.mean_before, moments.mean_after))
    cross, second = (one[start:stop, start:stop] / moments.count for one in (moments.cross, moments.second))
    if centred:
        cross, second = cross - torch.outer(before, after), second - torch.outer(after, after)
    metric = shrunk(second, moments.count)
    ridge = metric + RIDGE * float(metric.diagonal().mean()) * torch.eye(len(metric), dtype=metric.dtype)
    correction = torch.linalg.solve(ridge, (weight.double() @ (cross - second)).T).T
    return Target(
        weight=weight.double() + (1.0 - mix) * correction,
        second=metric,
        mean_before=(1.0 - mix) * before + mix * after,
        mean_after=after,
    )


Fit = Callable[[Unit, CrossMoments], Mapping[str, Tensor]]
"""Fits what is compressed of a unit: gives new values for tensors of the model, by their names in the checkpoint."""


def refit(
    rig: Rig, units: Sequence[Unit], batches: Sequence[Batch], first: Mapping[str, Tensor], fit: Fit
) -> dict[str, Tensor]:
    """Fit the compressed units of a model in the order in which they run.

    Args:
        rig: the model, with its original weights.
        units: the compressed units, in that order.
        batches: what the model is called with.
        first: values of the model's tensors as they were fitted without looking at other layers.
        fit: fits one unit.

    Returns:
        Name of a tensor in the checkpoint -> its new value. A unit whose calls cannot be matched keeps that of
        `first`.
    """
    values: dict[str, Tensor] = {}
    done: set[str] = set()
    names = {unit.name for unit in units}
    for unit in units:
        watch = next(one for one in rig.watches if unit in one.units.values())
        if watch.path in done:
            continue
        done.add(watch.path)
        wanted = {part: one for part, one in watch.units.items() if one.name in names}
        if isinstance(watch.module, nn.LSTM):
            values |= _refit_lstm(rig, watch, watch.module, wanted, batches, values, first, fit)
        else:
            values |= _refit_product(rig, watch, unit, batches, values, first, fit)
    return {**first, **values}


def _refit_product(
    rig: Rig,
    watch: Watch,
    unit: Unit,
    batches: Sequence[Batch],
    values: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    fit: Fit,
) -> Mapping[str, Tensor]:
    """Fit a weight whose module is called anew for every product."""
    moments = CrossMoments(sum(unit.columns))
    for batch in batches:
        before = _inputs(rig, unit, batch)
        with rig.holding({**first, **values} if isinstance(watch.module, nn.LSTMCell) else values):
            after = _inputs(rig, unit, batch)
        if before is None or after is None or before.shape != after.shape:
            return {}
        moments.add(before, after)
    return fit(unit, moments) if moments.count else {}


def _inputs(rig: Rig, unit: Unit, batch: Batch) -> Tensor | None:
    """What a unit is multiplied with for a batch, in every module that has it; None where one was called oddly."""
    seen: list[Tensor] = []
    odd: list[str] = []

    def see(one: Unit, inputs: Tensor, _: Any) -> None:
        if one.name == unit.name:
            seen.append(inputs)

    watches = [watch for watch in rig.watches if unit in watch.units.values()]
    with watched(watches, Watcher(see=see, odd=lambda _, reason: odd.append(reason))):
        rig.run(batch)
    return torch.cat(seen) if seen and not odd else None


@dataclass(slots=True, eq=False)
class _Course:
    """A call of an LSTM on its way through the levels.

    Args:
        x: inputs of the level, shape (time, batch, inputs).
        hidden: outputs before the first step, by level and direction.
        cell: cell states before the first step, by level and direction.
        real: which inputs are no padding.
    """

    x: Tensor
    hidden: Tensor
    cell: Tensor
    real: Tensor | None

    def run(self, module: nn.LSTM, number: int, name: str) -> LevelRun:
        """Run one level and direction with the weights that the module has now."""
        state = (self.hidden[number], self.cell[number])
        with torch.no_grad():
            return run_level(self.x, state, level_weights(module, name), self.real, lambda *_: None, name)

    def rows(self, run: LevelRun) -> Tensor:
        """What the joint weight was multiplied with, without padding."""
        rows = run.inputs.reshape(-1, run.inputs.shape[-1])
        return rows if self.real is None else rows[self.real.reshape(-1)]


def _refit_lstm(
    rig: Rig,
    watch: Watch,
    module: nn.LSTM,
    wanted: Mapping[str, Unit],
    batches: Sequence[Batch],
    values: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    fit: Fit,
) -> Mapping[str, Tensor]:
    """Fit the levels of an LSTM, each to its own recurrence as it becomes."""
    before = _courses(rig, module, batches)
    with rig.holding(values):
        after = _courses(rig, module, batches)
    if len(before) != len(after) or any(one.x.shape != two.x.shape for one, two in zip(before, after, strict=True)):
        return {}
    found: dict[str, Tensor] = {}
    parts: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for number, name in enumerate(level_names(module)):
        originals = [course.run(module, number, name) for course in before]
        rows = [course.rows(run) for course, run in zip(before, originals, strict=True)]
        unit = wanted.get(name)
        own: Mapping[str, Tensor] = {}
        kept = _of_level(first, watch, name)
        for _ in range(ROUNDS if unit is not None else 0):
            moments = CrossMoments(rows[0].shape[1])
            with rig.holding({**kept, **own}):
                for course, one in zip(after, rows, strict=True):
                    moments.add(one, course.rows(course.run(module, number, name)))
            if unit is not None:
                own = fit(unit, moments)
        found |= {**kept, **own}
        with rig.holding({**kept, **own}):
            outputs = [course.run(module, number, name).outputs for course in after]
        parts[0].append([run.outputs for run in originals])
        parts[1].append(outputs)
        if not module.bidirectional or name.endswith("_reverse"):
            for courses, made in zip((before, after), parts, strict=True):
                for course, *both in zip(courses, *made, strict=True):
                    course.x = torch.cat(both, dim=2)
                made.clear()
    return found


def _of_level(values: Mapping[str, Tensor], watch: Watch, name: str) -> dict[str, Tensor]:
    """Those values that belong to one level and direction."""
    units = [unit for part, unit in watch.units.items() if part in (name, f"hr_{name}")]
    own = {one for unit in units for one in (*unit.members, unit.bias)}
    return {one: value for one, value in values.items() if one in own}


def _courses(rig: Rig, module: nn.LSTM, batches: Sequence[Batch]) -> list[_Course]:
    """Every call of an LSTM, in the order of the batches."""
    courses = []
    for batch in batches:
        for args, kwargs in rig.calls(module, batch):
            given = opened(module, *arguments(*args, **kwargs))
            courses.append(_Course(x=given.x, hidden=given.hidden, cell=given.cell, real=given.real))
    return courses

"""Refit compressed layers in the order in which they run, each on the outputs of the compressed layers before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.calibration.hooks import ObservedModule, Observer, WeightGroup, lstm_arguments, observing
from mpocompress.calibration.lstm_forward import LevelResult, as_sequences, level_names, level_weights, run_level
from mpocompress.calibration.trial_model import TrialModel
from mpocompress.mpo.metric import shrunk
from mpocompress.user.batches import Batch

ROUNDS = 2
"""Fits of a recurrent layer, each on the states of the run with the previous fit."""
RIDGE = 0.3
"""Ridge of the correction, relative to the mean variance of the inputs: a direction with that variance gets half of its
correction. Without it, corrections overfit the calibration batches."""


class CrossMoments:
    """Sums over samples of the inputs of a weight in the original and in the compressed model.

    Args:
        cols: number of inputs.
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
            before: inputs in the original model.
            after: inputs in the compressed model.
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
class FitTarget:
    """The target of a fit.

    Args:
        weight: the matrix to approximate, float64, shape (rows, cols).
        second: second moment of the inputs, which weights the errors; positive definite, shape (cols, cols).
        mean_before: mean input in the original model, shape (cols,).
        mean_after: mean input in the compressed model, shape (cols,).
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
) -> FitTarget:
    """Compute the matrix that reproduces, on the inputs of the compressed model, the outputs of the original model.

    Args:
        weight: the original matrix.
        moments: moments of the inputs of its group of weights.
        span: range of its columns among those inputs.
        mix: share of the outputs of the original matrix on the inputs of the compressed model in the outputs to
            reproduce; 1 corrects nothing.
        centred: whether a bias corrects the mean.

    Returns:
        The least-squares solution and its metric.
    """
    start, stop = span
    before, after = (mean[start:stop] / moments.count for mean in (moments.mean_before, moments.mean_after))
    cross, second = (moment[start:stop, start:stop] / moments.count for moment in (moments.cross, moments.second))
    if centred:
        cross, second = cross - torch.outer(before, after), second - torch.outer(after, after)
    metric = shrunk(second, moments.count)
    ridge = metric + RIDGE * float(metric.diagonal().mean()) * torch.eye(len(metric), dtype=metric.dtype)
    correction = torch.linalg.solve(ridge, (weight.double() @ (cross - second)).T).T
    return FitTarget(
        weight=weight.double() + (1.0 - mix) * correction,
        second=metric,
        mean_before=(1.0 - mix) * before + mix * after,
        mean_after=after,
    )


Fit = Callable[[WeightGroup, CrossMoments], Mapping[str, Tensor]]
"""Fits the compressed weights of a group; returns name of a tensor in the checkpoint -> its new value."""


def refit(
    trial_model: TrialModel,
    units: Sequence[WeightGroup],
    batches: Sequence[Batch],
    first: Mapping[str, Tensor],
    fit: Fit,
) -> dict[str, Tensor]:
    """Refit the compressed weights of a model in the order in which they run.

    Args:
        trial_model: the model, with its original weights.
        units: the compressed groups of weights, in that order.
        batches: the batches.
        first: name of a tensor in the checkpoint -> its value from a fit of every layer alone.
        fit: fits one group.

    Returns:
        Name of a tensor in the checkpoint -> its new value; that of `first` for a group whose calls in the original and
        the compressed model do not match.
    """
    values: dict[str, Tensor] = {}
    done: set[str] = set()
    names = {unit.name for unit in units}
    for unit in units:
        observed = next(module for module in trial_model.observed if unit in module.units.values())
        if observed.path in done:
            continue
        done.add(observed.path)
        if isinstance(observed.module, nn.LSTM):
            compressed = {part: group for part, group in observed.units.items() if group.name in names}
            values |= _refit_lstm(trial_model, observed, observed.module, compressed, batches, values, first, fit)
        else:
            values |= _refit_product(trial_model, observed, unit, batches, values, first, fit)
    return {**first, **values}


def _refit_product(
    trial_model: TrialModel,
    observed: ObservedModule,
    unit: WeightGroup,
    batches: Sequence[Batch],
    values: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    fit: Fit,
) -> Mapping[str, Tensor]:
    """Refit the weights of a module that is called once for every product."""
    moments = CrossMoments(sum(unit.columns))
    for batch in batches:
        before = _inputs(trial_model, unit, batch)
        with trial_model.holding({**first, **values} if isinstance(observed.module, nn.LSTMCell) else values):
            after = _inputs(trial_model, unit, batch)
        if before is None or after is None or before.shape != after.shape:
            return {}
        moments.add(before, after)
    return fit(unit, moments) if moments.count else {}


def _inputs(trial_model: TrialModel, unit: WeightGroup, batch: Batch) -> Tensor | None:
    """Return the inputs of a group of weights in all modules; None if a call could not be observed."""
    all_inputs: list[Tensor] = []
    reasons: list[str] = []

    def observe(group: WeightGroup, inputs: Tensor, _: Any) -> None:
        if group.name == unit.name:
            all_inputs.append(inputs)

    modules = [observed for observed in trial_model.observed if unit in observed.units.values()]
    with observing(modules, Observer(observe=observe, unsupported=lambda _, reason: reasons.append(reason))):
        trial_model.run(batch)
    return torch.cat(all_inputs) if all_inputs and not reasons else None


@dataclass(slots=True, eq=False)
class _LSTMCall:
    """A call of an LSTM that is run level by level.

    Args:
        x: inputs of the current level, shape (time, batch, inputs).
        hidden: outputs before the first step, by level and direction.
        cell: cell states before the first step, by level and direction.
        is_real: which inputs are not padding; None without padding.
    """

    x: Tensor
    hidden: Tensor
    cell: Tensor
    is_real: Tensor | None

    def run(self, module: nn.LSTM, number: int, name: str) -> LevelResult:
        """Run one level and direction with the current weights of the module."""
        state = (self.hidden[number], self.cell[number])
        with torch.no_grad():
            return run_level(self.x, state, level_weights(module, name), self.is_real, lambda *_: None, name)

    def rows(self, result: LevelResult) -> Tensor:
        """Return the inputs of the joint weight without padding, shape (samples, cols)."""
        rows = result.inputs.reshape(-1, result.inputs.shape[-1])
        return rows if self.is_real is None else rows[self.is_real.reshape(-1)]


def _refit_lstm(
    trial_model: TrialModel,
    observed: ObservedModule,
    module: nn.LSTM,
    compressed: Mapping[str, WeightGroup],
    batches: Sequence[Batch],
    values: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    fit: Fit,
) -> Mapping[str, Tensor]:
    """Refit an LSTM level by level on the outputs of the compressed levels below."""
    before = _calls(trial_model, module, batches)
    with trial_model.holding(values):
        after = _calls(trial_model, module, batches)
    if len(before) != len(after) or any(old.x.shape != new.x.shape for old, new in zip(before, after, strict=True)):
        return {}
    new_values: dict[str, Tensor] = {}
    outputs: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    for number, name in enumerate(level_names(module)):
        originals = [call.run(module, number, name) for call in before]
        rows = [call.rows(result) for call, result in zip(before, originals, strict=True)]
        unit = compressed.get(name)
        start = _of_level(first, observed, name)
        fitted: Mapping[str, Tensor] = {}
        for _ in range(ROUNDS if unit is not None else 0):
            moments = CrossMoments(rows[0].shape[1])
            with trial_model.holding({**start, **fitted}):
                for call, old_rows in zip(after, rows, strict=True):
                    moments.add(old_rows, call.rows(call.run(module, number, name)))
            if unit is not None:
                fitted = fit(unit, moments)
        new_values |= {**start, **fitted}
        with trial_model.holding({**start, **fitted}):
            outputs[1].append([call.run(module, number, name).outputs for call in after])
        outputs[0].append([result.outputs for result in originals])
        if not module.bidirectional or name.endswith("_reverse"):
            for calls, directions in zip((before, after), outputs, strict=True):
                for call, *both in zip(calls, *directions, strict=True):
                    call.x = torch.cat(both, dim=2)
                directions.clear()
    return new_values


def _of_level(values: Mapping[str, Tensor], observed: ObservedModule, name: str) -> dict[str, Tensor]:
    """Return the values that belong to one level and direction."""
    units = [unit for part, unit in observed.units.items() if part in (name, f"hr_{name}")]
    names = {tensor for unit in units for tensor in (*unit.members, unit.bias)}
    return {tensor: value for tensor, value in values.items() if tensor in names}


def _calls(trial_model: TrialModel, module: nn.LSTM, batches: Sequence[Batch]) -> list[_LSTMCall]:
    """Return every call of an LSTM, in the order of the batches."""
    calls = []
    for batch in batches:
        for args, kwargs in trial_model.calls(module, batch):
            sequences = as_sequences(module, *lstm_arguments(*args, **kwargs))
            calls.append(
                _LSTMCall(x=sequences.x, hidden=sequences.hidden, cell=sequences.cell, is_real=sequences.is_real)
            )
    return calls

"""One pass over the calibration batches: moments of the inputs of every weight, and of the gradients of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress.calibration.hooks import NOT_RUN, Observer, WeightGroup, observing
from mpocompress.calibration.options import LossFunction
from mpocompress.calibration.outputs import primary
from mpocompress.calibration.trial_model import TrialModel
from mpocompress.errors import CalibrationError
from mpocompress.mpo.metric import Metric, Moments
from mpocompress.parallel import Progress
from mpocompress.user.batches import Batch, to_device
from mpocompress.user.code import describe_error

GRADIENTS_PER_OUTPUT = 16
"""Gradients of every weight that are collected, for each of its outputs."""
SEED = 0
NOT_FINITE = "had inputs or gradients that are NaN or Inf on the calibration batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The result of a pass.

    Args:
        units: groups of weights, in the order in which they first ran.
        metrics: name of a group -> metric.
        uncalibrated: name of a tensor -> the reason why it has no metric.
    """

    units: tuple[WeightGroup, ...]
    metrics: Mapping[str, Metric]
    uncalibrated: Mapping[str, str]


def collect(
    trial_model: TrialModel, *, loss: LossFunction | None = None, progress: Progress | None = None
) -> Collected:
    """Collect moments of all weights on the batches that are not used to measure decisions.

    Args:
        trial_model: the model.
        loss: loss whose gradients are used, with the targets of the batches; None for random projections of the
            outputs, which need no targets.
        progress: called before every batch and at the end.

    Returns:
        The metrics of all groups of weights that could be measured.

    Raises:
        CalibrationError: the model does not accept the batches, the loss raises an error, or gradients cannot be taken.
    """
    moments: dict[str, Moments] = {}
    units: dict[str, WeightGroup] = {}
    reasons: dict[str, str] = {}

    def observe(unit: WeightGroup, inputs: Tensor, on_gradient: Callable[[Callable[[Tensor], None]], None]) -> None:
        units.setdefault(unit.name, unit)
        sums = moments.setdefault(unit.name, Moments(unit.rows, sum(unit.columns)))
        sums.add_inputs(inputs)
        on_gradient(sums.add_gradients)

    def unsupported(unit: WeightGroup, reason: str) -> None:
        reasons.setdefault(unit.name, reason)

    batches = trial_model.rest
    generator = torch.Generator().manual_seed(SEED)
    with observing(trial_model.observed, Observer(observe=observe, unsupported=unsupported)):
        for done, batch in enumerate(batches):
            if progress is not None:
                progress("calibrating", done, len(batches))
            if not done or any(sums.gradient_count < GRADIENTS_PER_OUTPUT * sums.rows for sums in moments.values()):
                with torch.enable_grad():
                    _backward(trial_model, batch, loss, generator)
            else:
                trial_model.run(batch)
    if progress is not None:
        progress("calibrating", len(batches), len(batches))
    all_units = [unit for observed in trial_model.observed for unit in observed.units.values()]
    for unit in all_units:
        if unit.name not in moments:
            reasons.setdefault(unit.name, NOT_RUN)
        elif not moments[unit.name].is_sound:
            reasons.setdefault(unit.name, NOT_FINITE)
    measured = tuple(unit for unit in units.values() if unit.name not in reasons)
    return Collected(
        units=measured,
        metrics={unit.name: moments[unit.name].metric() for unit in measured},
        uncalibrated={
            member: reasons[unit.name] for unit in all_units if unit.name in reasons for member in unit.members
        },
    )


def _backward(trial_model: TrialModel, batch: Batch, loss: LossFunction | None, generator: torch.Generator) -> None:
    """Run the backward pass of one batch, unless no weight affects the output."""
    output = trial_model.run_with_gradients(batch)
    if loss is None:
        scalar = trial_model.measure.projection(primary(output)[0], generator)
    else:
        target = to_device(batch.target, trial_model.device)
        try:
            scalar = loss(output, target)
        except Exception as error:
            raise CalibrationError(
                where="loss",
                found=describe_error(error),
                why="the loss could not be computed",
                action="Fix the error above: the loss is called with the model's output and the target of a batch.",
            ) from error
        if not isinstance(scalar, Tensor) or scalar.numel() != 1:
            raise CalibrationError(
                where="loss",
                found=f"a {type(scalar).__name__}"
                + (f" of shape {tuple(scalar.shape)}" if isinstance(scalar, Tensor) else ""),
                why="the loss is a single number",
                action="Return its mean or its sum.",
            )
    if not scalar.requires_grad:
        return
    try:
        scalar.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise CalibrationError(
            where=type(trial_model.model).__name__,
            found=describe_error(error),
            why="gradients could not be taken through the model",
            action="Do not keep tensors from one call of the model's forward to the next.",
        ) from error

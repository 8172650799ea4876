"""One pass over the calibration inputs: the moments of what every weight is multiplied with, and of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress.calibration.divergence import primary
from mpocompress.calibration.hooks import NEVER, Unit, Watcher, watched
from mpocompress.calibration.options import LossFunction
from mpocompress.calibration.rig import Rig
from mpocompress.errors import CalibrationError
from mpocompress.jobs import Progress
from mpocompress.mpo.metric import Metric, Moments
from mpocompress.user.batches import moved
from mpocompress.user.code import told_with_its_line

GRADIENTS_PER_OUTPUT = 16
"""Gradients are taken until every weight has seen so many for each of its outputs."""
SEED = 0
NOT_FINITE = "saw NaN or Inf on the calibration inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a pass found.

    Args:
        units: in the order in which they first ran.
        metrics: unit name -> metric.
        left_out: name of a tensor -> why there is none, in words.
    """

    units: tuple[Unit, ...]
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str]


def collect(rig: Rig, *, loss: LossFunction | None = None, progress: Progress | None = None) -> Collected:
    """Run the model over the batches that no decision is measured on, watching every weight.

    Args:
        rig: the model.
        loss: what gradients are taken of, with the targets of the batches; None for random projections of the outputs,
            which need no labels.
        progress: told after every batch.

    Returns:
        The metrics. A unit that cannot be measured is left out, and stops no other.

    Raises:
        CalibrationError: the model does not take the batches, the loss raises, or no gradients can be taken.
    """
    moments: dict[str, Moments] = {}
    units: dict[str, Unit] = {}
    odd: dict[str, str] = {}

    def see(unit: Unit, inputs: Tensor, on_gradient: Callable[[Callable[[Tensor], None]], None]) -> None:
        units.setdefault(unit.name, unit)
        sums = moments.setdefault(unit.name, Moments(unit.rows, sum(unit.columns)))
        sums.add_inputs(inputs)
        on_gradient(sums.add_gradients)

    def is_odd(unit: Unit, reason: str) -> None:
        odd.setdefault(unit.name, reason)

    watcher = Watcher(see=see, odd=is_odd)
    batches = rig.rest
    generator = torch.Generator().manual_seed(SEED)
    with watched(rig.watches, watcher):
        for done, batch in enumerate(batches):
            if progress is not None:
                progress("calibrating", done, len(batches))
            if not done or any(one.gradient_count < GRADIENTS_PER_OUTPUT * one.rows for one in moments.values()):
                with torch.enable_grad():
                    _backward(rig, batch, loss, generator)
            else:
                rig.run(batch)
    if progress is not None:
        progress("calibrating", len(batches), len(batches))
    every = [unit for watch in rig.watches for unit in watch.units.values()]
    for unit in every:
        if unit.name not in moments:
            odd.setdefault(unit.name, NEVER)
        elif not moments[unit.name].is_sound:
            odd.setdefault(unit.name, NOT_FINITE)
    left_out = {member: odd[unit.name] for unit in every if unit.name in odd for member in unit.members}
    kept = tuple(unit for unit in units.values() if unit.name not in odd)
    return Collected(units=kept, metrics={unit.name: moments[unit.name].metric() for unit in kept}, left_out=left_out)


def _backward(rig: Rig, batch: object, loss: LossFunction | None, generator: torch.Generator) -> None:
    """Take gradients of one batch; an output that no weight reaches has none."""
    output = rig.run_openly(batch)
    if loss is None:
        scalar = rig.measure.projection(primary(output)[0], generator)
    else:
        target = moved(batch[1], rig.device) if isinstance(batch, tuple) else None
        try:
            scalar = loss(output, target)
        except Exception as error:
            raise CalibrationError(
                where="loss",
                found=told_with_its_line(error),
                why="the loss could not be computed",
                action="Mend that: it is called with the model's output and the target of a batch.",
            ) from error
        if not isinstance(scalar, Tensor) or scalar.numel() != 1:
            raise CalibrationError(
                where="loss",
                found=f"a {type(scalar).__name__}"
                + (f" of shape {tuple(scalar.shape)}" if isinstance(scalar, Tensor) else ""),
                why="gradients are taken of one number",
                action="Return the mean or the sum.",
            )
    if not scalar.requires_grad:
        return
    try:
        scalar.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise CalibrationError(
            where=type(rig.model).__name__,
            found=told_with_its_line(error),
            why="gradients could not be taken through the model",
            action="Let its forward start anew at every call, keeping no tensors of the one before.",
        ) from error

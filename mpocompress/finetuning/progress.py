"""Progress of a run, the argument of the `progress` function."""

from __future__ import annotations

from dataclasses import dataclass

from mpocompress.reports.finetuning import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneProgress:
    """Progress of a run after a step.

    Args:
        step: steps done.
        steps: number of steps that the run will probably have.
        share: how much of the run is done, from 0 to 1.
        loss: training loss of the step; None if it is not known.
        evaluation: the last evaluation.
        best_step: step of the best evaluation.
        is_new: whether the last evaluation was made after this step.
        remaining_s: estimated seconds left; None if they cannot be estimated.
    """

    __module__ = "mpocompress"

    step: int
    steps: int
    share: float
    loss: float | None
    evaluation: Evaluation
    best_step: int
    is_new: bool
    remaining_s: float | None

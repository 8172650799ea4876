"""Progress of a run, as it is passed to `progress=`."""

from __future__ import annotations

from dataclasses import dataclass

from mpocompress.reports.finetuning import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneProgress:
    """How far a run is.

    Args:
        step: steps done.
        steps: steps that it will have, as far as is known.
        share: how much of it is done, from 0 to 1.
        loss: training loss of the last step; None before the first.
        evaluation: the last measurement.
        best_step: the step of the best one.
        is_new: whether the measurement was made just now.
        remaining_s: seconds left; None where that is not known.
    """

    step: int
    steps: int
    share: float
    loss: float | None
    evaluation: Evaluation
    best_step: int
    is_new: bool
    remaining_s: float | None

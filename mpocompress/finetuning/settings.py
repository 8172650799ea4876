"""What a run is asked for, what it says while it lasts, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpocompress.finetuning.schedule import Length
from mpocompress.reports.finetuning import Evaluation

Trained = Literal["all", "cores"]
"""What is trained: every parameter that may be, or the cores alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How is trained.

    Args:
        length: how long.
        lr: the largest step size; None for one that suits every tensor.
        train: what.
        batches_per_step: batches of every step, over all processes; a multiple of their number.
        seed: what is drawn with.
        snapshot: where a run is kept on disk; None for nowhere.
        fingerprint: what a run has to have in common with one that it goes on from.
    """

    length: Length
    lr: float | None
    train: Trained
    batches_per_step: int
    seed: int
    snapshot: Path | None
    fingerprint: Mapping[str, str]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a run left.

    Args:
        steps: steps done.
        expected_steps: steps that it would have had.
        samples: samples trained on.
        evaluations: every measurement.
        best_step: the step whose weights the model has.
        cuts: how often it went back to the best weights, with a smaller step size.
        relative_step: the largest step size of a tensor as a share of its size; None where the user gave one.
        stopped: why it ended.
        elapsed_s: seconds spent.
    """

    steps: int
    expected_steps: int
    samples: int
    evaluations: tuple[Evaluation, ...]
    best_step: int
    cuts: int
    relative_step: float | None
    stopped: str
    elapsed_s: float

"""What a run is asked for, what it says while it lasts, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpocompress.finetuning.options import Trained
from mpocompress.finetuning.schedule import Length
from mpocompress.reports.finetuning import Evaluation


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

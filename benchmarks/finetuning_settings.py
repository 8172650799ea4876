"""Settings and goals of `benchmarks/finetuning.py` for each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.quality_rows import DATA_AWARE, DATA_FREE
from mpocompress.finetuning.options import Precision
from mpocompress.reports.calibration import OutputKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the fine-tuning of a model, the same for every method.

    Args:
        keeps: Fractions of the parameters to keep.
        kind: Kind of the model's outputs, which determines their divergence.
        steps: Maximum number of steps; a run stops early if it does not improve for a while.
        steps_at: Fraction -> other number of steps, where a step takes longer than at other fractions.
        batch: Samples per batch, or parallel streams of text.
        length: Characters per window of continuous text; None for independent samples.
        carry_state: Whether the state is carried from window to window.
        batches_per_step: Batches per step.
        is_regrouped: Whether samples are grouped into new batches in every pass. Otherwise batches keep their contents
            and only change their order, and the teacher runs once per batch.
        held_out: Number of held-out batches, which select the best weights.
        lr: Largest learning rate; None for the default of `finetune_module` for every tensor.
        precision: Precision of the products; `auto`, the default for users, is chosen by timing and may differ between
            methods.
    """

    keeps: tuple[str, ...]
    kind: OutputKind
    steps: int
    batch: int
    length: int | None = None
    carry_state: bool = False
    batches_per_step: int = 1
    is_regrouped: bool = True
    held_out: int = 4
    steps_at: Mapping[str, int] = field(default_factory=dict)
    lr: float | None = None
    precision: Precision = "float32"


SETTINGS: Mapping[str, Settings] = {
    "fashion": Settings(keeps=("1/8", "1/32"), kind="classification", steps=300, batch=64),
    "resemblyzer": Settings(keeps=("1/8",), kind="embedding", steps=120, batch=32, is_regrouped=False),
    "kjv": Settings(
        keeps=("1/8", "1/32"),
        kind="classification",
        steps=300,
        steps_at={"1/32": 170},  # a shape with many sites, which trains at half the speed
        batch=16,
        length=64,
        carry_state=True,
    ),
}
QUICK = Settings(keeps=("1/8",), kind="classification", steps=40, batch=32)
"""For a functional test on a few bundled images."""

GOALS: Mapping[str, Mapping[str, float]] = {
    "fashion": {"1/8": 88.9, "1/32": 84.5},
    "resemblyzer": {"1/8": 0.92},
    "kjv": {"1/8": 1.11, "1/32": 1.5},
}
"""Model -> fraction kept -> minimum of the main score after fine-tuning; maximum if smaller is better."""
CPU_S: Mapping[str, float] = {"fashion": 30.0, "resemblyzer": 120.0, "kjv": 60.0}
"""Maximum processor time of fine-tuning."""

MAGNITUDE, WANDA = "magnitude pruning", "Wanda + least squares"
METHODS = (DATA_AWARE, DATA_FREE, MAGNITUDE, WANDA, "pruning, positions free", "Wanda, positions free")
DEFAULT_METHODS = (DATA_AWARE, DATA_FREE, MAGNITUDE, WANDA)
"""Methods that are measured by default."""
RIVALS = (MAGNITUDE, WANDA)
"""Methods that the calibrated start must surpass after fine-tuning, at `AHEAD_AT` of the parameters and less."""
AHEAD_AT = "1/8"
SEEDS = (0, 1, 2)

"""How `benchmarks/finetuning.py` fine-tunes each model, and what that was asked to reach: the numbers to turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.quality_rows import DATA_AWARE, DATA_FREE
from mpocompress.calibration.divergence import OutputKind
from mpocompress.finetuning import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is fine-tuned; the same for every method.

    Args:
        keeps: fractions of the parameters that are kept.
        kind: what the model puts out, which says how far two outputs are apart.
        steps: at most so many; a run that finds nothing better for a while ends earlier.
        steps_at: fraction -> other steps than those, where a step takes longer than at other fractions.
        batch: samples of a batch, or streams of text side by side.
        length: characters of a window, for text that goes on from batch to batch; None for samples by themselves.
        carry_state: whether the memory goes on with the text.
        batches_per_step: batches of every step.
        is_regrouped: whether samples come with others in every pass; otherwise batches stay as they are, only come in
            another order, and the teacher runs once for each.
        held_out: batches of training data that are not trained on, by which the best weights are told.
        lr: the largest step size; None for that which `finetune` gives every tensor.
        precision: of the products; `auto`, what a user gets, is told by timing, and may differ between methods.
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
        steps_at={"1/32": 170},  # a shape of many sites, which trains at half the speed
        batch=16,
        length=64,
        carry_state=True,
    ),
}
QUICK = Settings(keeps=("1/8",), kind="classification", steps=40, batch=32)
"""For a few bundled images: does everything run?"""

GOALS: Mapping[str, Mapping[str, float]] = {
    "fashion": {"1/8": 88.9, "1/32": 84.5},
    "resemblyzer": {"1/8": 0.92},
    "kjv": {"1/8": 1.11, "1/32": 1.5},
}
"""Model -> fraction kept -> the least main figure after fine-tuning; where smaller is better, the most."""
CPU_S: Mapping[str, float] = {"fashion": 30.0, "resemblyzer": 120.0, "kjv": 60.0}
"""The most processor time of fine-tuning."""

MAGNITUDE, WANDA = "magnitude pruning", "Wanda + least squares"
METHODS = (DATA_AWARE, DATA_FREE, MAGNITUDE, WANDA, "pruning, places free", "Wanda, places free")
USUAL = (DATA_AWARE, DATA_FREE, MAGNITUDE, WANDA)
"""Methods that are measured where none is named."""
RIVALS = (MAGNITUDE, WANDA)
"""Methods that the data-aware start has to be ahead of after fine-tuning, at `AHEAD_AT` of the parameters and less."""
AHEAD_AT = "1/8"
SEEDS = (0, 1, 2)

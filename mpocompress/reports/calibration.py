"""The calibration section of a report: divergence of the outputs, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import msgspec

from mpocompress.reports.json_documents import LARGEST, Count, Fraction, NonNegative, Positive

OutputKind = Literal["classification", "embedding", "regression"]
"""What a model outputs: scores or probabilities, directions, or values."""
OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)

NOT_MEASURED = (
    "Cores were fitted to calibration inputs, but the outputs were not compared, and weight errors do not measure "
    "quality. Compress with the calibration inputs themselves to compare the outputs, or evaluate the expanded model "
    "on your own task."
)
BEYOND = 1e100
"""Divergence of outputs that are not finite or have another shape; a number, because JSON has no infinity."""

VERDICTS = (
    (0.02, "hardly changed", "Evaluate the model on your own task before you use it."),
    (0.1, "changed a little", "Evaluate the model on your own task; fine-tuning recovers most of the loss."),
    (0.3, "changed clearly", "Keep more parameters, or fine-tune before use."),
    (
        math.inf,
        "changed too much to be useful",
        "Keep more parameters, leave the most sensitive layers dense, or fine-tune.",
    ),
)
"""Largest output change (see `output_change`) -> meaning, advice."""

UnrelatedDivergence = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]


def output_change(
    kind: str, *, divergence: float | None, unrelated: float | None, agreement: float | None
) -> float | None:
    """Return how much outputs changed, on one scale for all kinds; None if it is not known.

    That is the divergence as a share of that of unrelated outputs; for a classifier the divergence in nats or the share
    of changed answers, whichever is larger.

    Args:
        kind: kind of the outputs.
        divergence: of the outputs from the original ones.
        unrelated: divergence between the original's outputs for different inputs.
        agreement: fraction of answers of a classifier that are the same.

    Example:
        >>> output_change("regression", divergence=0.1, unrelated=2.0, agreement=None)
        0.05
    """
    if divergence is None:
        return None
    if kind == "classification":
        return max(divergence, 0.0 if agreement is None else 1.0 - agreement)
    return divergence / unrelated if unrelated else None


def meaning_of(change: float) -> tuple[str, str]:
    """Return what a change of the outputs means, and the advice.

    Args:
        change: see `output_change`.
    """
    return next(((meaning, advice) for limit, meaning, advice in VERDICTS if change <= limit), VERDICTS[-1][1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """Divergence of the compressed model's outputs, measured on calibration inputs.

    Args:
        kind: kind of the outputs: scores or probabilities, directions, or values.
        measure: name of the divergence.
        kind_from: description of the source of `kind`.
        samples: number of samples that were fitted to.
        held_out_samples: number of other samples that the divergence was measured on; 0 if it was measured on the same
            ones, or not at all.
        divergence: divergence of the compressed model's outputs from those of the original; 1e100 if some are not
            finite or have another shape; None if it was not measured (the calibration came from a file).
        unrelated_divergence: divergence between the original's outputs for different inputs; None if it was not
            measured.
        agreement: fraction of output rows with the same largest entry; None unless `kind` is `classification`.
        refit_mix: weight of the compressed model's inputs in the refit of its layers; 1 if nothing was refitted.
        uncalibrated: matrices that were compressed without calibration inputs: name to reason.
    """

    kind: OutputKind
    measure: str
    kind_from: str
    samples: Positive
    held_out_samples: Count
    divergence: NonNegative | None
    unrelated_divergence: UnrelatedDivergence | None
    agreement: Fraction | None
    refit_mix: Fraction
    uncalibrated: Mapping[str, str]

    @property
    def output_change(self) -> float | None:
        """How much the outputs changed, see `output_change`; None if it was not measured."""
        return output_change(
            self.kind, divergence=self.divergence, unrelated=self.unrelated_divergence, agreement=self.agreement
        )

    def verdict(self, sensitivities: Mapping[str, float]) -> tuple[str, ...]:
        """Return one or two sentences on what the divergence means.

        Args:
            sensitivities: name of every compressed matrix -> its sensitivity; 0 if it was not measured.
        """
        if self.divergence is None:
            return (NOT_MEASURED,)
        inputs = "held-out calibration inputs" if self.held_out_samples else "the calibration inputs themselves"
        change = self.output_change
        if change is None:
            return (f"The divergence was measured on {inputs}: evaluate the expanded model on your own task as well.",)
        meaning, advice = meaning_of(change)
        finding = f"On {inputs} the outputs {meaning}: {self._figure(change)}."
        worst = max(sensitivities, key=lambda name: sensitivities[name], default="")
        if change > VERDICTS[0][0] and len(sensitivities) > 1 and sensitivities[worst]:
            finding += f" The most sensitive matrix is {worst} (divergence {sensitivities[worst]:.2g} alone)."
        return finding, advice

    def _figure(self, change: float) -> str:
        """Return the figure that the verdict is about."""
        if self.divergence is not None and self.divergence >= BEYOND:
            return "some are not finite, or have another shape"
        if self.kind != "classification":
            return f"{change:.1%} of the divergence between unrelated outputs"
        same = f", the same answer for {self.agreement:.1%}" if self.agreement is not None else ""
        return f"a KL divergence of {self.divergence:.2g} nats{same}"

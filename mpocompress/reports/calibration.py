"""What calibration inputs say of a compressed model, as plain numbers, and what those mean in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

OutputKind = Literal["classification", "embedding", "regression"]
"""What a model outputs: scores or probabilities, directions, or values."""
OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
NOT_MEASURED = (
    "Cores were chosen by what the outputs feel, but the outputs were not measured: errors of weights say little. "
    "Compress with the calibration inputs themselves to see, or measure the expanded model on your own task."
)
BEYOND = 1e100
"""Divergence of outputs that are not finite or have another shape; a number, so that JSON can hold it."""
VERDICTS = (
    (0.02, "hardly changed", "Check it on your own task all the same."),
    (0.1, "changed a little", "Check it on your own task; fine-tuning brings back most of what was lost."),
    (0.3, "changed clearly", "Keep more, or fine-tune before use."),
    (math.inf, "changed beyond use", "Keep more, or leave the most sensitive layers dense; fine-tune before use."),
)
"""Extent of a change (see `CalibrationReport.extent`) up to which -> what it means, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """What the model's outputs lost, measured with calibration inputs.

    Args:
        kind: what the model puts out: `classification`, `embedding` or `regression`.
        measure: how outputs are compared, in words.
        said: from where the kind is known, in words.
        samples: how many samples were learnt from.
        held_out: how many others the divergence was measured on; 0 where it was measured on the same.
        divergence: of the outputs of the compressed model from those of the original; `BEYOND` where one cannot be
            compared, None where it was not measured.
        unrelated: divergence between the original's outputs for different inputs: what a model that tells nothing would
            have; None where it was not measured.
        agreement: fraction of rows of outputs whose largest entry stayed the largest; None for other kinds.
        mix: weight on the inputs of the compressed model that layers were refitted with; 1 where they were not.
        left_out: name of a matrix or unit -> why it was treated without data.
    """

    kind: str
    measure: str
    said: str
    samples: int
    held_out: int
    divergence: float | None
    unrelated: float | None
    agreement: float | None
    mix: float
    left_out: Mapping[str, str]

    @property
    def extent(self) -> float | None:
        """How far the outputs changed, whatever they are; None where it was not measured.

        The divergence as a share of `unrelated`; of a classifier the divergence itself, in nats, or the share of
        changed answers, whichever is more.
        """
        if self.divergence is None:
            return None
        if self.kind == "classification":
            return max(self.divergence, 1.0 - self.agreement if self.agreement is not None else 0.0)
        return self.divergence / self.unrelated if self.unrelated else None

    def verdict(self, costs: Mapping[str, float]) -> tuple[str, ...]:
        """What the divergence means, in words.

        Args:
            costs: name of every compressed matrix -> the divergence by it alone; 0 where that was not measured.

        Returns:
            A sentence or two.
        """
        if self.divergence is None:
            return (NOT_MEASURED,)
        inputs = "held-out calibration inputs" if self.held_out else "the calibration inputs themselves"
        extent = self.extent
        if extent is None:
            return (f"Measured on {inputs}: measure the expanded model on your own task as well.",)
        meaning, advice = next((words for limit, *words in VERDICTS if extent <= limit), VERDICTS[-1][1:])
        said = f"On {inputs} the outputs {meaning}: {self._how(extent)}."
        worst = max(costs, key=lambda name: costs[name], default="")
        if extent > VERDICTS[0][0] and len(costs) > 1 and costs[worst]:
            said += f" {worst} costs most ({costs[worst]:.2g} by itself)."
        return said, advice

    def _how(self, extent: float) -> str:
        """The figure that a verdict is about."""
        if self.divergence is not None and self.divergence >= BEYOND:
            return "some are not finite, or of another shape"
        if self.kind != "classification":
            return f"{extent:.1%} of the way to outputs for other inputs"
        same = f", the same answer for {self.agreement:.1%}" if self.agreement is not None else ""
        return f"a KL divergence of {self.divergence:.2g} nats{same}"

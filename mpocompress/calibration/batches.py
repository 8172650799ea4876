"""Calibration batches: the first of the user's batches, split into batches to fit to and held-out batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mpocompress.errors import CalibrationError
from mpocompress.user.batches import Batch, BatchFormat, parse_batch, passes_over
from mpocompress.user.code import calibration_passes

DEFAULT_SAMPLES = 512
CALIBRATION_BATCHES_PER_HELD_OUT = 4
"""One batch in this many is held out."""

INPUTS = BatchFormat(
    name="calibration batches",
    error=CalibrationError,
    action="Give an iterable of inputs of the model: tensors, tuples of arguments, or mappings of named arguments. If "
    "batches are inputs with labels, give the inputs alone, or a loss as well.",
    load=calibration_passes,
    targets="none",
    accepts_functions=False,
)
"""Batches of a calibration without a loss: a tuple of two is two arguments of the model."""
PAIRS = replace(INPUTS, targets="required")
"""Batches of a calibration with a loss."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationBatches:
    """Calibration batches.

    Args:
        learning: batches that moments are collected on.
        held_out: batches of the final measurement; those of `learning` if there is only one batch.
    """

    learning: tuple[Batch, ...]
    held_out: tuple[Batch, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether the final measurement has batches of its own."""
        return self.held_out is not self.learning

    @property
    def held_out_samples(self) -> int:
        """Number of samples that only the final measurement sees."""
        return sample_total(self.held_out) if self.is_held_out else 0


def sample_total(batches: Sequence[Batch]) -> int:
    """Return the number of samples of several batches."""
    return sum(batch.samples for batch in batches)


def read_batches(
    batches: str | Iterable[object], *, samples: int | None = None, has_targets: bool = False
) -> CalibrationBatches:
    """Take as many of the user's batches as are needed, and hold out every fourth one.

    Args:
        batches: an iterable of batches, or `file.py:name` or `package.module:name` of one or of a function that returns
            one, which is imported and run.
        samples: largest number of samples, unless the last batch has more; 512 by default.
        has_targets: whether a batch is a pair of the model's inputs and a target.

    Raises:
        CalibrationError: the batches cannot be imported or iterated, there are none, or one is not accepted.

    Example:
        >>> import torch
        >>> parts = read_batches([torch.zeros(8, 3)] * 5)
        >>> len(parts.learning), len(parts.held_out)
        (4, 1)
    """
    limit = DEFAULT_SAMPLES if samples is None else samples
    if limit < 1:
        raise CalibrationError(
            where="samples", found=f"got {limit}", why="at least one sample is needed", action="Give 1 or more."
        )
    accepted = PAIRS if has_targets else INPUTS
    taken: list[Batch] = []
    count = 0
    for batch in passes_over(batches, accepted)(None):
        taken.append(parse_batch(batch, accepted))
        count += taken[-1].samples
        if count >= limit:
            break
    if not taken:
        raise accepted.refusal("no batch", "there is nothing to run the model on")
    every = CALIBRATION_BATCHES_PER_HELD_OUT
    held_out = tuple(taken[every - 1 :: every]) or tuple(taken[1:])
    learning = tuple(batch for number, batch in enumerate(taken, start=1) if number % every)
    if len(taken) < every:
        learning = learning[:1]
    return CalibrationBatches(learning=learning, held_out=held_out or learning)

"""The user's calibration inputs: as many as are wanted, parted into those to learn from and those held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mpocompress.errors import CalibrationError
from mpocompress.user.batches import sample_count
from mpocompress.user.code import batches_from

DEFAULT_SAMPLES = 512
HELD_OUT_EVERY = 4
"""One batch in so many is held out."""

_WRITE_ONE = (
    "Give an iterable of what the model is called with: tensors, tuples of arguments, or dicts of named ones. "
    "Where batches are inputs with labels, give the inputs alone, or a loss as well."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batches:
    """Calibration inputs.

    Args:
        learning: batches that moments are taken from.
        held_out: batches that only the last measurement sees; those of `learning` where there is only one.
        has_targets: whether a batch is a pair of what the model is called with and a target.
    """

    learning: tuple[object, ...]
    held_out: tuple[object, ...]
    has_targets: bool = False

    @property
    def is_held_out(self) -> bool:
        """Whether the last measurement sees inputs of its own."""
        return self.held_out is not self.learning

    def inputs(self, batch: object) -> object:
        """What the model is called with.

        Args:
            batch: a batch.

        Returns:
            The batch, or the first of the pair.
        """
        return batch[0] if self.has_targets and isinstance(batch, tuple | list) else batch

    def count(self, batches: Sequence[object]) -> int:
        """How many samples some of the batches hold.

        Args:
            batches: the batches.

        Returns:
            The number.
        """
        return sum(sample_count(self.inputs(batch)) for batch in batches)


def gathered(batches: str | Iterable[object], *, samples: int | None = None, has_targets: bool = False) -> Batches:
    """Take the user's batches, as far as they are wanted.

    Args:
        batches: an iterable of batches, or `file.py:name` or `package.module:name` of one or of a function that gives
            one, which is imported and run.
        samples: how many samples at most; 512 by default.
        has_targets: whether a batch is a pair of what the model is called with and a target.

    Returns:
        The batches; every fourth one is held out.

    Raises:
        CalibrationError: it cannot be imported or iterated, is empty, or holds something else.

    Example:
        >>> import torch
        >>> found = gathered([torch.zeros(8, 3)] * 5)
        >>> len(found.learning), len(found.held_out)
        (4, 1)
    """
    wanted = DEFAULT_SAMPLES if samples is None else samples
    if wanted < 1:
        raise CalibrationError(
            where="samples", found=f"got {wanted}", why="at least one is needed", action="Give 1 or more."
        )
    source: object = batches_from(batches) if isinstance(batches, str) else batches
    if isinstance(source, Tensor | Mapping) or not isinstance(source, Iterable):
        raise CalibrationError(
            where="calibration batches",
            found=f"a {type(source).__name__}",
            why="several batches are taken from it, one after another",
            action=_WRITE_ONE,
        )
    taken: list[object] = []
    count = 0
    for batch in source:
        inputs = batch[0] if has_targets and isinstance(batch, tuple | list) and len(batch) == 2 else batch
        if has_targets and inputs is batch:
            raise _odd(batch, "with a loss, a batch is a pair: what the model is called with, and a target")
        if not isinstance(inputs, Tensor | tuple | Mapping):
            raise _odd(inputs, "a model is called with a tensor, a tuple of arguments, or a dict of named ones")
        taken.append(tuple(batch) if has_targets and isinstance(batch, list) else batch)
        count += sample_count(inputs)
        if count >= wanted:
            break
    if not taken:
        raise CalibrationError(
            where="calibration batches",
            found="none",
            why="there is nothing to run the model on",
            action=_WRITE_ONE,
        )
    held_out = tuple(taken[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]) or tuple(taken[1:])
    learning = tuple(one for place, one in enumerate(taken, start=1) if place % HELD_OUT_EVERY)
    if len(taken) < HELD_OUT_EVERY:
        learning = learning[:1]
    return Batches(learning=learning, held_out=held_out or learning, has_targets=has_targets)


def _odd(batch: object, why: str) -> CalibrationError:
    return CalibrationError(where="calibration batches", found=f"a {type(batch).__name__}", why=why, action=_WRITE_ONE)

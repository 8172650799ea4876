"""What can be asked of a fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import get_args

from mpocompress.calibration.options import LossFunction
from mpocompress.errors import TuningError
from mpocompress.finetuning.options import Precision, Score, Trained
from mpocompress.finetuning.schedule import DEFAULT_STEPS, Length
from mpocompress.finetuning.self_generated import SelfGenerated
from mpocompress.reports.calibration import OUTPUT_KINDS, OutputKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recipe:
    """How is trained, in the words of `finetune`, where every field is described.

    Args:
        evaluate: the user's own measure, or where it is.
        loss: loss of output and target, or where it is.
        steps: at most so many; 1,000 where neither steps nor minutes are given.
        minutes: at most so long.
        lr: the largest step size.
        train: what is trained.
        kind: what the model puts out.
        teacher_share: share of the distance to the teacher in the loss.
        held_out: batches to measure on.
        carry_state: whether recurrent layers go on from batch to batch.
        batches_per_step: batches of every step.
        precision: of the products.
        seed: what is drawn with.

    Raises:
        TuningError: a value that means nothing.

    Example:
        >>> Recipe().length.steps
        1000
    """

    evaluate: Score | str | None = None
    loss: LossFunction | str | None = None
    steps: int | None = None
    minutes: float | None = None
    lr: float | None = None
    train: Trained = "all"
    kind: OutputKind | None = None
    teacher_share: float | None = None
    held_out: object | None = None
    carry_state: bool = False
    batches_per_step: int | None = None
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value by itself."""
        share = self.teacher_share
        for name, is_sound, wanted in (
            ("steps", self.steps is None or self.steps >= 1, "1 or more"),
            ("minutes", self.minutes is None or 0.0 < self.minutes < math.inf, "a number above 0"),
            ("lr", self.lr is None or 0.0 < self.lr < math.inf, "a number above 0"),
            ("train", self.train in get_args(Trained), "all or cores"),
            ("kind", self.kind is None or self.kind in OUTPUT_KINDS, f"one of {', '.join(OUTPUT_KINDS)}, or none"),
            ("teacher_share", share is None or 0.0 <= share <= 1.0, "a number from 0 to 1"),
            ("batches_per_step", self.batches_per_step is None or self.batches_per_step >= 1, "1 or more"),
            ("precision", self.precision in get_args(Precision), f"one of {', '.join(get_args(Precision))}"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not is_sound:
                raise TuningError(
                    where=name,
                    found=f"got {getattr(self, name)!r}",
                    why="it would mean nothing",
                    action=f"Give {wanted}.",
                )

    @property
    def length(self) -> Length:
        """How long is trained."""
        steps = DEFAULT_STEPS if self.steps is None and self.minutes is None else self.steps
        return Length(steps=steps, seconds=None if self.minutes is None else 60.0 * self.minutes)

    def words(self) -> Mapping[str, str]:
        """Every value in text, to tell whether two runs are of the same recipe."""
        named = ("evaluate", "loss", "held_out")
        return {
            one.name: named_thing(getattr(self, one.name)) if one.name in named else str(getattr(self, one.name))
            for one in fields(self)
        }


def named_thing(thing: object) -> str:
    """What something is called in a report: where it is, or what it is.

    Args:
        thing: anything that the user gave.

    Returns:
        Text; empty for None.

    Example:
        >>> named_thing("net.py:train"), named_thing([1, 2]), named_thing(None)
        ('net.py:train', 'a list', '')
    """
    if thing is None or isinstance(thing, str):
        return thing or ""
    if isinstance(thing, SelfGenerated):
        return f"{thing.batches} x {thing.batch_size} texts of {thing.length} tokens that the teacher wrote"
    name = getattr(thing, "__qualname__", None)
    return name if isinstance(name, str) else f"a {type(thing).__name__}"

"""How models run while one of them is trained: from the cores, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from mpocompress.nn.execution import ExecutionChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How models run while one of them is trained.

    Args:
        low: whether the trained model multiplies in bfloat16.
        teacher_low: whether the teacher does.
    """

    low: bool
    teacher_low: bool

    def words(self) -> str:
        """The precision, in words."""
        if self.low == self.teacher_low:
            return "bfloat16" if self.low else "float32"
        return f"{'bfloat16' if self.low else 'float32'}, teacher in {'bfloat16' if self.teacher_low else 'float32'}"


def from_words(words: Sequence[str]) -> Way:
    """A way as a snapshot has it.

    Args:
        words: `True` or `False` for the model and for the teacher.

    Returns:
        The way.
    """
    low, teacher_low = words
    return Way(low=low == str(True), teacher_low=teacher_low == str(True))


@contextmanager
def from_cores(model: nn.Module) -> Iterator[None]:
    """Have the layers with cores run from their cores in the block, and each as before after it.

    What is multiplied out is seldom faster to train, and which it is would have to be measured, so that two runs could
    differ.

    Args:
        model: the model; it may have none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, ExecutionChoice)]
    before = [layer.execution for layer in layers]
    for layer in layers:
        layer.execution = "factorised"
    try:
        yield
    finally:
        for layer, one in zip(layers, before, strict=True):
            layer.execution = one

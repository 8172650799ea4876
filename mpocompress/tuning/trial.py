"""In which precision a model trains fastest here, found by running a step of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mpocompress.errors import TuningError
from mpocompress.nn.execution import ExecutionChoice

Precision = Literal["auto", "float32", "bfloat16"]
"""How a model is asked to multiply while it is trained."""

SHORT_S = 0.004
"""A step that takes no longer is not worth choosing for: it runs factorised, in float32."""
CLEARLY = 1.15
"""How many times faster another way has to be."""
ROUNDS = 2


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


def fastest(runs: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """The name of what runs fastest; the first one unless another is clearly faster.

    What does not run here at all, as some products in bfloat16 on some processors, is left out.

    Args:
        runs: name -> a function; the first is what is taken for granted.
        device: where they run.

    Returns:
        The name.
    """
    first = next(iter(runs))
    if len(runs) == 1:
        return first
    runs[first]()
    if _seconds(runs[first], device) < SHORT_S:
        return first
    runs = {name: run for name, run in runs.items() if name == first or _does_run(run)}
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            seconds = _seconds(run, device)
            if turn:  # the first turn warms up
                best[name] = min(best[name], seconds)
    quick = min(best, key=lambda name: best[name])
    return quick if best[quick] * CLEARLY < best[first] else first


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


def _does_run(run: Callable[[], object]) -> bool:
    try:
        run()
    except (RuntimeError, TuningError):
        return False
    return True


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

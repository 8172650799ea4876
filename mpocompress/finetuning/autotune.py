"""Steps before the first one: in which precision a model trains fastest here, and what takes part in its loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mpocompress.errors import TuningError
from mpocompress.finetuning.data import Example
from mpocompress.finetuning.loss import loss_of
from mpocompress.finetuning.objective import Objective, called, compared
from mpocompress.finetuning.options import Precision
from mpocompress.finetuning.precision import Way
from mpocompress.finetuning.recurrent_state import Carrier
from mpocompress.user.randomness import Randomness

SHORT_S = 0.004
"""A step that takes no longer is not worth choosing for: it runs factorised, in float32."""
CLEARLY = 1.15
"""How many times faster another way has to be."""
ROUNDS = 2


class Trial:
    """Steps that are run for what they show, and change nothing.

    Args:
        model: the model, ready to be trained.
        teacher: what it learns from; None without one.
        objective: what is minimised.
        example: a batch, on any device.
        carriers: of the states of both; empty where no state is carried.
        device: where the models are.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        example: Example,
        carriers: Sequence[Carrier],
        device: torch.device,
    ) -> None:
        self._model, self._teacher, self._objective = model, teacher, objective
        self._example, self._carriers, self._device = example.on(device), carriers, device
        self._expected: Tensor | None = None
        if teacher is not None and objective.share:
            with torch.no_grad(), self._unseen():
                self._expected = compared(called(teacher, self._example))

    def way(self, precision: Precision) -> Way:
        """How the models run fastest here.

        Args:
            precision: what was asked for.

        Returns:
            The way.

        Raises:
            TuningError: a step of it fails.
        """
        lows = [precision == "bfloat16"] if precision != "auto" else [False, True]
        ways = {str(low): Way(low=low, teacher_low=lows[0]) for low in lows}
        way = ways[fastest({name: partial(self._step, one) for name, one in ways.items()}, self._device)]
        if self._teacher is None or len(lows) == 1:
            return way
        teachers = {str(low): partial(self._taught, low) for low in lows}
        return replace(way, teacher_low=fastest(teachers, self._device) == str(True))

    def leaves_out(self, parameters: Iterable[nn.Parameter], way: Way) -> bool:
        """Whether a trained parameter takes no part in the loss.

        Args:
            parameters: what is trained.
            way: how the models run.
        """
        parameters = list(parameters)
        self._step(way, keep=True)
        found = any(one.grad is None for one in parameters)
        self._model.zero_grad(set_to_none=True)
        return found

    def _step(self, way: Way, *, keep: bool = False) -> None:
        """A forward and a backward pass."""
        with self._unseen():
            loss_of(self._model, self._expected, self._objective, self._example, way, self._device).backward()  # type: ignore[no-untyped-call]
        if not keep:
            self._model.zero_grad(set_to_none=True)

    def _taught(self, low: bool) -> None:
        """What the teacher does in a step."""
        with torch.no_grad(), self._unseen(), torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            if self._teacher is not None:
                called(self._teacher, self._example)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """Let neither random numbers, nor states, nor buffers change."""
        before = {name: one.detach().clone() for name, one in self._model.named_buffers()}
        try:
            with Randomness().drawing(), ExitStack() as stack:
                for carrier in self._carriers:
                    stack.enter_context(carrier.afresh())
                yield
        finally:
            with torch.no_grad():
                for name, buffer in self._model.named_buffers():
                    if name in before:
                        buffer.copy_(before[name])


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

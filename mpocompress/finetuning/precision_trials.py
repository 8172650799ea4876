"""Choice of the training precision by trial steps, which leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.forward import compared_output, run_model
from mpocompress.finetuning.objective import Objective
from mpocompress.finetuning.options import Precision
from mpocompress.finetuning.precision import MatmulDtypes, autocast
from mpocompress.finetuning.recurrent_state import StatefulRNN
from mpocompress.nn.timing import best_times, clock_of
from mpocompress.user.batches import Batch
from mpocompress.user.randomness import Randomness

SHORT_STEP_S = 0.004
"""A step that takes no longer runs in float32, without further trials."""
CLEARLY_FASTER = 1.15
"""Factor by which another dtype has to be faster than float32."""
TRIAL_ROUNDS = 2


class PrecisionTrials:
    """Trial steps.

    Args:
        model: the model, in training mode.
        teacher: the teacher; None without one.
        objective: the training loss.
        batch: a batch, on any device.
        stateful: hooks of both models if states are carried from batch to batch.
        device: device of the models.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        batch: Batch,
        stateful: Sequence[StatefulRNN],
        device: torch.device,
    ) -> None:
        self._model, self._teacher, self._objective = model, teacher, objective
        self._batch, self._stateful, self._device = batch.to(device), stateful, device
        self._expected: Tensor | None = None
        if teacher is not None and objective.share:
            with torch.no_grad(), self._isolated():
                self._expected = compared_output(run_model(teacher, self._batch))

    def fastest(self, precision: Precision) -> MatmulDtypes:
        """Return the fastest dtypes of the matrix products, or those that are asked for.

        Args:
            precision: `auto` to choose, or the dtype of both models.

        Raises:
            FinetuneError: a step fails.
        """
        if precision != "auto":
            return MatmulDtypes(model=precision, teacher=precision)
        names = ("float32", "bfloat16")
        model = fastest({name: partial(self._step, name) for name in names}, self._device)
        if self._teacher is None:
            return MatmulDtypes(model=model, teacher=model)
        teacher = fastest({name: partial(self._run_teacher, name) for name in names}, self._device)
        return MatmulDtypes(model=model, teacher=teacher)

    def has_unused(self, parameters: Iterable[nn.Parameter], dtype: str) -> bool:
        """Return whether a parameter has no effect on the loss.

        Args:
            parameters: the trained parameters.
            dtype: dtype of the matrix products.
        """
        self._backward(dtype)
        has_unused = any(parameter.grad is None for parameter in parameters)
        self._model.zero_grad(set_to_none=True)
        return has_unused

    def _step(self, dtype: str) -> None:
        self._backward(dtype)
        self._model.zero_grad(set_to_none=True)

    def _backward(self, dtype: str) -> None:
        with self._isolated():
            loss = self._objective.of_batch(self._model, self._expected, self._batch, self._device, dtype)
            loss.backward()  # type: ignore[no-untyped-call]

    def _run_teacher(self, dtype: str) -> None:
        with torch.no_grad(), self._isolated(), autocast(self._device, dtype):
            if self._teacher is not None:
                run_model(self._teacher, self._batch)

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Change neither random numbers nor carried states nor buffers."""
        before = {name: buffer.detach().clone() for name, buffer in self._model.named_buffers()}
        try:
            with Randomness().drawing(), ExitStack() as stack:
                for hooks in self._stateful:
                    stack.enter_context(hooks.fresh())
                yield
        finally:
            with torch.no_grad():
                for name, buffer in self._model.named_buffers():
                    if name in before:
                        buffer.copy_(before[name])


def fastest(runs: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """Return the name of the fastest function; the first one unless another is clearly faster.

    A function that fails, such as a product in bfloat16 on some processors, is left out.

    Args:
        runs: name -> function; the first is the default.
        device: device that they run on.
    """
    default = next(iter(runs))
    if len(runs) == 1:
        return default
    clock = clock_of(device.type)
    if best_times({default: runs[default]}, rounds=1, clock=clock)[default] < SHORT_STEP_S:
        return default
    runs = {name: run for name, run in runs.items() if name == default or _does_run(run)}
    times = best_times(runs, rounds=TRIAL_ROUNDS, clock=clock)
    best = min(times, key=lambda name: times[name])
    return best if times[best] * CLEARLY_FASTER < times[default] else default


def _does_run(run: Callable[[], object]) -> bool:
    try:
        run()
    except (RuntimeError, FinetuneError):
        return False
    return True

"""The training loop: steps, evaluations, the best weights so far, and snapshots to resume from."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpocompress._version import __version__
from mpocompress.errors import FinetuneError
from mpocompress.finetuning.data import Position
from mpocompress.finetuning.interrupt import stop_requests
from mpocompress.finetuning.learning_rate import relative_learning_rate, schedule_factor, warm_up_steps
from mpocompress.finetuning.optimizer import Optimizer
from mpocompress.finetuning.progress import FinetuneProgress
from mpocompress.finetuning.recurrent_state import flatten_states, unflatten_states
from mpocompress.finetuning.run_state import RunState
from mpocompress.finetuning.schedule import LEARNING_RATE_CUT, MOST_CUTS, Length, steps_between
from mpocompress.finetuning.setup import RunSetup
from mpocompress.finetuning.snapshot import RunHeader, Snapshot, checked_values, write_snapshot
from mpocompress.finetuning.teacher_cache import TeacherCache
from mpocompress.reports.finetuning import DATA_ENDED, ENDED_EARLY, FINISHED, INTERRUPTED
from mpocompress.user.batches import Batch
from mpocompress.user.randomness import Randomness, Stream, stream_seed

SNAPSHOT_S = 300.0
"""A snapshot is written after every evaluation, and when this much time has passed since the last one."""
PACE_STEPS = 10
"""Steps after which the number of steps of a run limited by time is estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The outcome of a run.

    Args:
        state: the state at the end.
        requested_steps: number of steps that the run would have had without a stop.
        stopped: why it ended.
        elapsed_s: seconds spent.
    """

    state: RunState
    requested_steps: int
    stopped: str
    elapsed_s: float


class Trainer:
    """Trains the model of a set-up.

    Args:
        setup: everything that it works with.
    """

    def __init__(self, setup: RunSetup) -> None:
        self._setup, self._options, self._team = setup, setup.options, setup.team
        self._length = Length.of(setup.options.steps, setup.options.minutes)
        self._optimizer = Optimizer(setup.parameters, setup.options.lr)
        self._state = RunState(expected_steps=self._length.expected_steps(0, 0.0))
        self._best = self._copied_weights()
        self._cache: TeacherCache | None = None
        self._start_clock()

    def run(self) -> RunResult:
        """Train to the end, or until something stops the run; the model has its best weights then, also on an error.

        Raises:
            FinetuneError: the model cannot be evaluated, does not accept a batch, or puts out NaN from the start.
            FormatError: the run to resume does not fit the model.
            OutputError: the snapshot cannot be written.
        """
        try:
            stopped = self._run()
        finally:
            self._load(self._best)
        state, is_finished = self._state, stopped == FINISHED
        return RunResult(
            state=state,
            requested_steps=state.step if is_finished else max(state.expected_steps, state.step),
            stopped=stopped,
            elapsed_s=self._elapsed(),
        )

    def _run(self) -> str:
        """Train, and return why the run ended."""
        setup = self._setup
        if setup.resumed is not None:
            self._restore(setup.resumed)
        else:
            self._evaluate()
        self._start_clock()
        if setup.resumed is None:
            self._save()
        if setup.teacher is not None and setup.objective.share:
            self._cache = TeacherCache(
                setup.teacher,
                is_stateful=bool(setup.stateful),
                dtype=setup.dtypes.teacher,
                first=self._state.position.number,
                device=setup.device,
            )
        batches, stopped = self._batches(), ""
        with stop_requests() as requested:
            while not stopped:
                stopped = self._next_step(batches, requested)
            if stopped in (DATA_ENDED, FINISHED) and self._state.evaluations[-1].step != self._state.step:
                stopped = self._evaluate() or stopped
        if self._state.step == 0 and stopped not in (INTERRUPTED, FINISHED):
            raise FinetuneError(
                where="training",
                found=stopped,
                why="no step could be completed",
                action="Check the data and the loss; give fewer batches per step, or a smaller learning rate.",
            )
        return stopped

    def _next_step(self, batches: Iterator[tuple[Position, Batch]], requested: threading.Event) -> str:
        """Make a step with what follows it; return why the run ends with it, or an empty text."""
        share = self._team.broadcast(self._share)
        if share >= 1.0:
            return FINISHED
        taken = list(itertools.islice(batches, self._setup.batches_per_step))
        if len(taken) < self._setup.batches_per_step:
            return DATA_ENDED
        loss = self._step(taken, share)
        if not math.isfinite(loss):
            return f"the loss was {'NaN' if math.isnan(loss) else 'infinite'} at step {self._state.step + 1}"
        samples = sum(batch.samples for _, batch in taken)
        self._state = self._state.after_step(samples=samples, position=taken[-1][0], loss=loss)
        if self._state.step == PACE_STEPS and self._length.seconds:
            expected = self._team.broadcast(lambda: self._length.expected_steps(PACE_STEPS, self._elapsed()))
            self._state = replace(self._state, expected_steps=expected)
        every = steps_between(self._state.expected_steps, len(self._setup.data.held_out))
        is_evaluated = self._state.step % every == 0 or self._state.step == self._length.steps
        stopped = self._evaluate() or self._adapt() if is_evaluated else ""
        if self._team.all_reduce_sum(float(requested.is_set())) > 0:
            stopped = stopped or INTERRUPTED
        if is_evaluated or stopped == INTERRUPTED or time.monotonic() - self._saved > SNAPSHOT_S:
            self._save()
        self._report(loss, is_evaluated=is_evaluated)
        return stopped

    def _batches(self) -> Iterator[tuple[Position, Batch]]:
        """Yield the batches from the current position, and reset carried states where a pass starts."""
        number = self._state.position.number
        for position, batch in self._setup.data.batches(self._state.position):
            if position.number != number:
                number = position.number
                for hooks in self._setup.stateful:
                    hooks.reset()
            yield position, batch

    def _step(self, taken: Sequence[tuple[Position, Batch]], share: float) -> float:
        """Change the parameters, and return the loss over all processes; if it is not finite, nothing is changed."""
        setup, size, own_loss = self._setup, self._team.size, 0.0
        self._optimizer.zero_grad()
        own = [(place, *part) for place, part in enumerate(taken) if place % size == self._team.rank]
        for place, position, batch in own:
            is_last = place >= len(taken) - size
            sync = nullcontext() if is_last or size == 1 else setup.wrapped.no_sync()  # type: ignore[operator]
            seed = stream_seed(self._options.seed, Stream.TRAINING, self._state.step, place)
            with sync, Randomness(seed).drawing():
                expected = None if self._cache is None else self._cache.output(batch, position.number)
                loss = setup.objective.of_batch(setup.wrapped, expected, batch, setup.device, setup.dtypes.model)
                loss = loss / len(own)
                loss.backward()  # type: ignore[no-untyped-call]
            own_loss += float(loss.detach())
        norm = self._optimizer.clip()
        total = self._team.all_reduce_sum(own_loss) / size
        if not math.isfinite(total) or not math.isfinite(norm):
            return total if not math.isfinite(total) else norm
        warm_up = warm_up_steps(self._state.expected_steps)
        self._optimizer.step(
            self._state.relative_learning_rate,
            cut=LEARNING_RATE_CUT**self._state.cuts,
            share=schedule_factor(share, self._state.step, warm_up),
        )
        return total

    def _evaluate(self) -> str:
        """Evaluate the model, and keep its weights if they are the best; return why the run ends, or an empty text."""
        measurement = self._team.broadcast(lambda: self._setup.evaluator.evaluate(self._state.step))
        self._setup.mode.enable()
        if not math.isfinite(measurement.evaluation.selection_metric):
            return f"the outputs were NaN or Inf at step {self._state.step}"
        if not self._state.evaluations:
            measure = self._setup.objective.measure
            relative = relative_learning_rate(measurement.distance, measure.kind if measure is not None else "")
            self._state = replace(self._state, relative_learning_rate=relative)
        if self._state.is_better(measurement.evaluation):
            self._best = self._copied_weights()
        self._state = self._state.after_evaluation(measurement.evaluation)
        return ""

    def _adapt(self) -> str:
        """Return to the best weights if the run is stalled; return why the run ends, or an empty text."""
        if self._state.step == self._length.steps:
            return FINISHED
        if not self._state.is_stalled:
            return ""
        if self._state.cuts == MOST_CUTS:
            return ENDED_EARLY
        self._load(self._best)
        self._state = self._state.after_cut()
        return ""

    def _start_clock(self) -> None:
        self._saved = time.monotonic()
        self._started = self._saved - self._state.elapsed_s
        self._first_share, self._first_elapsed = self._share(), self._state.elapsed_s

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _share(self) -> float:
        return self._length.share(self._state.step, self._elapsed())

    @property
    def _weights(self) -> dict[str, Tensor]:
        """All tensors that a step may change; a model may replace its buffers by other tensors."""
        return {**self._setup.parameters, **dict(self._setup.model.named_buffers())}

    def _copied_weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._weights.items()}

    def _load(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._weights.items():
                if name in values:
                    tensor.copy_(values[name])

    def _save(self) -> None:
        """Write a snapshot."""
        path = self._setup.snapshot
        if path is None or not self._team.is_rank_zero:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self._weights.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self._optimizer.state().items()}
        for number, hooks in enumerate(self._setup.stateful):
            tensors |= flatten_states(hooks.states, f"state.{number}.")
        header = RunHeader(
            tool_version=__version__,
            settings=self._setup.settings,
            dtypes=self._setup.dtypes,
            state=replace(self._state, elapsed_s=self._elapsed()),
            moved=self._optimizer.moved,
            is_reshuffled=self._setup.data.is_reshuffled,
        )
        write_snapshot(Snapshot(header=header, tensors=tensors), path)
        self._saved = time.monotonic()

    def _restore(self, snapshot: Snapshot) -> None:
        """Continue a run; nothing is changed if it does not fit the model."""
        where = str(self._setup.snapshot)
        for head in ("model.", "best."):
            checked_values(snapshot.part(head), self._weights, where)
        checked_values(snapshot.part("optimizer."), self._optimizer.expected_state(snapshot.header.moved), where)
        there = {name: tensor.to(self._setup.device) for name, tensor in snapshot.part("state.").items()}
        for number, hooks in enumerate(self._setup.stateful):
            hooks.restore(unflatten_states(there, f"{number}."), where)
        self._optimizer.restore(snapshot.part("optimizer."))
        self._load(snapshot.part("model."))
        self._best = {name: value.to(self._weights[name].device) for name, value in snapshot.part("best.").items()}
        self._state = snapshot.header.state
        self._setup.data.is_reshuffled = snapshot.header.is_reshuffled
        self._setup.mode.enable()

    def _report(self, loss: float, *, is_evaluated: bool) -> None:
        if self._options.progress is None or not self._team.is_rank_zero:
            return
        share = self._share()
        spent, done = self._elapsed() - self._first_elapsed, share - self._first_share
        self._options.progress(
            FinetuneProgress(
                step=self._state.step,
                steps=self._state.expected_steps,
                share=share,
                loss=loss,
                evaluation=self._state.evaluations[-1],
                best_step=self._state.best_step,
                is_new=is_evaluated,
                remaining_s=spent * (1.0 - share) / done if done > 0 else None,
            )
        )

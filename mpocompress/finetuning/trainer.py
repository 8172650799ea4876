"""The loop: steps, measurements, the best weights so far, and what is needed to go on after a stop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from mpocompress.errors import TuningError
from mpocompress.finetuning.data import Example, Feed, Position
from mpocompress.finetuning.distributed import Team
from mpocompress.finetuning.evaluation import Judge
from mpocompress.finetuning.interrupt import stopping
from mpocompress.finetuning.loss import loss_of
from mpocompress.finetuning.objective import Objective
from mpocompress.finetuning.options import Trained
from mpocompress.finetuning.precision import Way
from mpocompress.finetuning.progress import TuningProgress
from mpocompress.finetuning.recurrent_state import Carrier, flattened, restored
from mpocompress.finetuning.schedule import (
    MOST_CUTS,
    PATIENCE,
    STEP_CUT,
    relative_step,
    step_size_share,
    steps_between,
    warm_up_steps,
)
from mpocompress.finetuning.settings import Settings, Trace
from mpocompress.finetuning.snapshot import Snapshot, checked_values, write_snapshot
from mpocompress.finetuning.teacher_cache import Lessons
from mpocompress.finetuning.train_mode import Modes
from mpocompress.nn import MPOWeight
from mpocompress.reports.finetuning import DATA_ENDED, ENDED_EARLY, FINISHED, INTERRUPTED, Evaluation
from mpocompress.user.randomness import Randomness, mixed

LARGEST_NORM = 1.0
"""Gradients are scaled down to this norm."""
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
LEAST_RMS = 1e-2
"""Tensors of smaller entries, such as biases that are zero, are taken for tensors of these."""
SNAPSHOT_S = 300.0
"""A run is kept on disk whenever it is measured, and when this much time went by."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of every parameter, beside how often it moved it."""
PACE_STEPS = 10
"""After so many steps it is known how many fit into the time that was asked for."""


def trained_parameters(model: nn.Module, train: Trained) -> dict[str, nn.Parameter]:
    """The parameters that are trained, each once.

    Args:
        model: the model.
        train: which.

    Returns:
        Name -> parameter; those that are frozen are not among them.

    Raises:
        TuningError: there are none.
    """
    cores = {id(core) for module in model.modules() if isinstance(module, MPOWeight) for core in module.cores}
    found = {
        name: one
        for name, one in model.named_parameters()
        if one.requires_grad and one.is_floating_point() and (train == "all" or id(one) in cores)
    }
    if not found:
        raise TuningError(
            where=type(model).__name__,
            found="no cores to train" if train == "cores" and not cores else "no parameter that requires a gradient",
            why="there is nothing that training could change",
            action="Train all parameters, load a compressed file into the model first, or unfreeze some.",
        )
    return found


class Run:
    """One fine-tuning of a model, whose weights it changes.

    Args:
        model: the model, on its device.
        feed: what is trained on.
        objective: what is minimised.
        judge: measures the model.
        teacher: what it learns from, in evaluation mode; None where it learns from targets alone.
        carriers: of the states of the model and of the teacher; empty where no state is carried.
        way: how the models run.
        modes: of the model while it is trained.
        has_unused: whether a trained parameter takes no part in the outputs.
        settings: how is trained.
        start: the run to go on with; None to begin.
        team: the processes that train together.
        progress: told how far the run is; only in the leading process.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        feed: Feed,
        objective: Objective,
        judge: Judge,
        teacher: nn.Module | None,
        carriers: Sequence[Carrier],
        way: Way,
        modes: Modes,
        has_unused: bool,
        settings: Settings,
        start: Snapshot | None,
        team: Team,
        progress: Callable[[TuningProgress], None] | None,
    ) -> None:
        self._model, self._feed, self._objective, self._judge = model, feed, objective, judge
        self._carriers, self._way = carriers, way
        self._settings, self._team, self._progress = settings, team, progress
        self._modes = modes
        self._device = next(iter(model.parameters())).device
        self._parameters = trained_parameters(model, settings.train)
        self._sizes = [_size(one) for one in self._parameters.values()]
        groups = [{"params": [one]} for one in self._parameters.values()]
        self._optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=WEIGHT_DECAY)
        self._wrapped = team.wrapped(model, has_unused=has_unused)
        self._step, self._samples, self._before_s = 0, 0, 0.0
        self._expected = settings.length.expected_steps(0, 0.0)
        self._position = Position()
        self._lessons = None
        if teacher is not None and objective.share:
            first = start.position.number if start is not None else 0
            self._lessons = Lessons(
                teacher, is_stateful=bool(carriers), low=way.teacher_low, first=first, device=self._device
            )
        self._evaluations: tuple[Evaluation, ...] = ()
        self._losses = (0.0, 0.0)
        self._cuts, self._cut_at = 0, 0
        self._best = self._copy()
        self._start = start

    def go(self) -> Trace:
        """Train to the end, or as far as it goes; the model has the best weights then.

        Returns:
            What happened.

        Raises:
            TuningError: the model cannot be measured, does not take a batch, or puts out NaN from the start.
            OutputError: the run cannot be kept on disk.
        """
        try:
            return self._go()
        except BaseException:
            self._put(self._best)
            raise

    def _go(self) -> Trace:
        if self._start is not None:
            self._resume(self._start)
        else:
            self._evaluate(None)
            self._keep()
        started = kept = time.monotonic()
        stopped, batches = "", self._batches()
        with stopping() as asked:
            while not stopped:
                share = self._settings.length.share(self._step, self._elapsed(started))
                if self._team.told(share) >= 1.0:
                    stopped = FINISHED
                    break
                taken = list(itertools.islice(batches, self._settings.batches_per_step))
                if len(taken) < self._settings.batches_per_step:
                    stopped = DATA_ENDED
                    break
                loss = self._one_step(taken, share)
                if not math.isfinite(loss):
                    stopped = f"the loss was {'NaN' if math.isnan(loss) else 'infinite'} at step {self._step + 1}"
                    break
                is_new = self._after_step(taken, loss, started)
                stopped = self._why_stop(is_new)
                is_asked = self._team.summed([float(asked.is_set())])[0] > 0
                stopped = stopped or (INTERRUPTED if is_asked else "")
                if is_new or stopped == INTERRUPTED or time.monotonic() - kept > SNAPSHOT_S:
                    self._keep(self._elapsed(started))
                    kept = time.monotonic()
                self._tell(loss, is_new=is_new, started=started)
            if stopped in (DATA_ENDED, FINISHED) and self._evaluations[-1].step != self._step:
                self._evaluate(self._mean_loss())
                stopped = self._flaw() or stopped
        if self._step == 0 and stopped != INTERRUPTED and stopped != FINISHED:
            raise TuningError(
                where="training",
                found=stopped,
                why="not one step could be made",
                action="Look at the data and the loss; give fewer batches a step, or a smaller step size.",
            )
        self._put(self._best)
        return Trace(
            steps=self._step,
            expected_steps=self._step if stopped == FINISHED else max(self._expected, self._step),
            samples=self._samples,
            evaluations=self._evaluations,
            best_step=self._best_step,
            cuts=self._cuts,
            relative_step=self._relative_step if self._settings.lr is None else None,
            stopped=stopped,
            elapsed_s=self._elapsed(started),
        )

    @property
    def _best_step(self) -> int:
        return max(self._evaluations, key=lambda one: one.merit).step

    def _elapsed(self, started: float) -> float:
        return self._before_s + time.monotonic() - started

    def _largest_steps(self) -> list[float]:
        """The largest step size of every trained tensor."""
        if self._settings.lr is not None:
            return [self._settings.lr] * len(self._parameters)
        return [self._relative_step * rms for rms in self._sizes]

    @property
    def _relative_step(self) -> float:
        measure = self._objective.measure
        return relative_step(self._evaluations[0].divergence, measure.kind if measure is not None else "")

    def _batches(self) -> Iterator[tuple[Position, Example]]:
        """The batches from where the run is, states forgotten where a pass begins."""
        number = self._position.number
        for position, example in self._feed.batches(self._position):
            if position.number != number:
                number = position.number
                for carrier in self._carriers:
                    carrier.forget()
            yield position, example

    def _one_step(self, taken: Sequence[tuple[Position, Example]], share: float) -> float:
        """Make a step; its loss over all processes, and nothing changed where that is not finite."""
        warm_up = warm_up_steps(self._expected)
        for group, rate in zip(self._optimizer.param_groups, self._largest_steps(), strict=True):
            group["lr"] = rate * STEP_CUT**self._cuts * step_size_share(share, self._step, warm_up)
        self._optimizer.zero_grad(set_to_none=True)
        size, own = self._team.size, 0.0
        mine = [(place, *one) for place, one in enumerate(taken) if place % size == self._team.rank]
        for place, position, example in mine:
            last = place >= len(taken) - size
            syncs = nullcontext() if last or size == 1 else self._wrapped.no_sync()  # type: ignore[operator]
            with syncs, Randomness(mixed(self._settings.seed, 1, self._step, place)).drawing():
                expected = None if self._lessons is None else self._lessons.expected(example, position.number)
                loss = loss_of(self._wrapped, expected, self._objective, example, self._way, self._device) / len(mine)
                loss.backward()  # type: ignore[no-untyped-call]
            own += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), LARGEST_NORM))
        (total,) = (one / size for one in self._team.summed([own]))
        if not math.isfinite(total) or not math.isfinite(norm):
            return total if not math.isfinite(total) else norm
        self._optimizer.step()
        return total

    def _after_step(self, taken: Sequence[tuple[Position, Example]], loss: float, started: float) -> bool:
        """Count a step; whether the model was measured after it."""
        self._step += 1
        self._samples += sum(one.samples for _, one in taken)
        self._position = taken[-1][0]
        self._losses = (self._losses[0] + loss, self._losses[1] + 1.0)
        length = self._settings.length
        if self._step == PACE_STEPS and length.seconds:
            self._expected = self._team.told(length.expected_steps(self._step, self._elapsed(started)))
        every = steps_between(self._expected, len(self._feed.held_out))
        if self._step % every and self._step != length.steps:
            return False
        self._evaluate(self._mean_loss())
        return True

    def _mean_loss(self) -> float | None:
        total, count = self._losses
        self._losses = (0.0, 0.0)
        return total / count if count else None

    def _evaluate(self, training_loss: float | None) -> None:
        """Measure the model, and keep its weights if it is the best so far."""
        found: Evaluation | None = None
        if self._team.leads:
            found = replace(self._judge.measured(self._step), training_loss=training_loss)
        found = self._team.told(found)
        if found is None:
            raise RuntimeError("a measurement got lost")
        self._modes.train()
        best = max((one.merit for one in self._evaluations), default=-math.inf)
        if not self._evaluations or found.merit > best:
            self._best = self._copy()
        self._evaluations = (*self._evaluations, found)

    def _why_stop(self, is_new: bool) -> str:
        """Look at the last measurement: why the run ends with it; and go back where nothing got better for a while."""
        if not is_new:
            return ""
        flaw = self._flaw()
        if flaw:
            return flaw
        if self._step == self._settings.length.steps:
            return FINISHED
        before, recent = self._evaluations[: self._cut_at + 1], self._evaluations[self._cut_at + 1 :]
        before = (*before, *recent[:-PATIENCE])
        if len(recent) < PATIENCE or _is_better(recent[-PATIENCE:], before):
            return ""
        if self._cuts == MOST_CUTS:
            return ENDED_EARLY
        self._put(self._best)
        self._cuts, self._cut_at = self._cuts + 1, len(self._evaluations) - 1
        return ""

    def _flaw(self) -> str:
        """Why the last measurement ends the run, and does not count; empty where it does not."""
        if math.isfinite(self._evaluations[-1].merit):
            return ""
        self._evaluations = self._evaluations[:-1]
        return f"the model put out NaN or Inf at step {self._step}"

    @property
    def _state(self) -> dict[str, Tensor]:
        """All that a step may change; buffers may be other tensors after it."""
        return {**self._parameters, **dict(self._model.named_buffers())}

    def _copy(self) -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in self._state.items()}

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, one in self._state.items():
                if name in values:
                    one.copy_(values[name])

    def _keep(self, elapsed_s: float = 0.0) -> None:
        """Write the run to the disk."""
        if self._settings.snapshot is None or not self._team.leads:
            return
        way = self._way
        tensors = {f"model.{name}": one for name, one in self._state.items()}
        tensors |= {f"best.{name}": one for name, one in self._best.items()}
        moments = self._optimizer.state_dict()["state"]
        for number, held in moments.items():
            tensors |= {f"optimizer.{number}.{name}": one for name, one in held.items()}
        for number, carrier in enumerate(self._carriers):
            tensors |= flattened(carrier.memory, f"memory.{number}.")
        snapshot = Snapshot(
            settings=self._settings.fingerprint,
            way=(str(way.low), str(way.teacher_low)),
            step=self._step,
            samples=self._samples,
            elapsed_s=elapsed_s,
            expected_steps=self._expected,
            position=self._position,
            evaluations=self._evaluations,
            losses=self._losses,
            cuts=(self._cuts, self._cut_at),
            moved=tuple(moments),
            is_reshuffled=self._feed.is_reshuffled,
            tensors=tensors,
        )
        write_snapshot(snapshot, self._settings.snapshot)

    def _resume(self, found: Snapshot) -> None:
        """Go on with a run."""
        where = str(self._settings.snapshot)
        for head in ("model.", "best."):
            checked_values(found.part(head), self._state, where)
        self._put(found.part("model."))
        self._best = {name: one.to(self._state[name].device) for name, one in found.part("best.").items()}
        self._load_optimizer(found)
        for number, carrier in enumerate(self._carriers):
            held = {name: one.to(self._device) for name, one in found.tensors.items()}
            carrier.take(restored(held, f"memory.{number}."), where)
        self._step, self._samples, self._before_s = found.step, found.samples, found.elapsed_s
        self._expected, self._position = found.expected_steps, found.position
        self._evaluations, self._losses = found.evaluations, (found.losses[0], found.losses[1])
        self._cuts, self._cut_at = found.cuts
        self._feed.is_reshuffled = found.is_reshuffled
        self._modes.train()

    def _load_optimizer(self, found: Snapshot) -> None:
        """Take over the moments, which every parameter that was ever moved has."""
        held = found.part("optimizer.")
        wanted = {
            f"{number}.{name}": one if name in MOMENTS else torch.zeros(())
            for number, one in enumerate(self._parameters.values())
            for name in ("step", *MOMENTS)
            if number in found.moved
        }
        checked_values(held, wanted, str(self._settings.snapshot))
        state: dict[int, dict[str, Tensor]] = {}
        for name, one in held.items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = one
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _tell(self, loss: float, *, is_new: bool, started: float) -> None:
        if self._progress is None or not self._team.leads:
            return
        elapsed_s = self._elapsed(started)
        share = self._settings.length.share(self._step, elapsed_s)
        spent = elapsed_s - self._before_s
        done = share - self._settings.length.share(0, self._before_s)
        self._progress(
            TuningProgress(
                step=self._step,
                steps=self._expected,
                share=share,
                loss=loss,
                evaluation=self._evaluations[-1],
                best_step=self._best_step,
                is_new=is_new,
                remaining_s=spent * (1.0 - share) / done if done > 0 else None,
            )
        )


def _size(tensor: Tensor) -> float:
    """The root mean square of its entries, which its step size goes by."""
    rms = float(tensor.detach().float().square().mean().sqrt()) if tensor.numel() else 0.0
    return max(rms, LEAST_RMS)


def _is_better(recent: Sequence[Evaluation], before: Sequence[Evaluation]) -> bool:
    """Whether measurements found a better score, or a smaller loss, than those before them."""
    losses = [[one.loss for one in each if one.loss is not None] for each in (recent, before)]
    falls = all(losses) and min(losses[0]) < min(losses[1])
    return falls or max(one.merit for one in recent) > max(one.merit for one in before)

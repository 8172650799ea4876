"""Fine-tuning a model in memory: everything is checked and made ready, then trained, then told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from mpocompress.calibration.options import LossFunction
from mpocompress.errors import TuningError
from mpocompress.finetuning.autotune import Trial
from mpocompress.finetuning.data import Feed
from mpocompress.finetuning.distributed import Team, leads, team
from mpocompress.finetuning.evaluation import Judge
from mpocompress.finetuning.objective import objective_for
from mpocompress.finetuning.options import Precision, Score, Trained
from mpocompress.finetuning.precision import Way, from_cores, from_words
from mpocompress.finetuning.progress import TuningProgress
from mpocompress.finetuning.recipe import Recipe, named_thing
from mpocompress.finetuning.recurrent_state import Carrier
from mpocompress.finetuning.reporting import half_notes, reported
from mpocompress.finetuning.self_generated import Generated, SelfGenerated
from mpocompress.finetuning.settings import Settings
from mpocompress.finetuning.snapshot import Snapshot, read_snapshot
from mpocompress.finetuning.train_mode import Modes
from mpocompress.finetuning.trainer import Run, trained_parameters
from mpocompress.modules.provenance import record_of, remember
from mpocompress.nn import MPOWeight
from mpocompress.reports.calibration import OutputKind
from mpocompress.reports.finetuning import Evaluation, TuningReport
from mpocompress.user.code import loss_function, score_function

_PRECISE = Way(low=False, teacher_low=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinetuneResult:
    """What fine-tuning did.

    Args:
        model: the model that was trained, with the best weights.
        report: the figures; `save` writes them into the file.
        elapsed_s: seconds spent.
    """

    model: nn.Module
    report: TuningReport
    elapsed_s: float

    @property
    def history(self) -> tuple[Evaluation, ...]:
        """Every measurement, from the start on."""
        return self.report.evaluations

    @property
    def before(self) -> Evaluation:
        """The model as it came."""
        return self.report.before

    @property
    def after(self) -> Evaluation:
        """The model as it is now."""
        return self.report.after

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.report.steps

    @property
    def stopped(self) -> str:
        """`finished`, or why it ended earlier."""
        return self.report.stopped


def finetune(
    model: nn.Module,
    data: object,
    *,
    teacher: nn.Module | None = None,
    evaluate: Score | str | None = None,
    loss: LossFunction | str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float | None = None,
    train: Trained = "all",
    kind: OutputKind | None = None,
    teacher_share: float | None = None,
    held_out: object | None = None,
    carry_state: bool = False,
    batches_per_step: int | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    snapshot: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[TuningProgress], None] | None = None,
) -> FinetuneResult:
    """Train a compressed model, by default towards the outputs of the original one; no labels are needed.

    AdamW with a warm-up and a cosine schedule, gradients clipped to norm 1, the model measured up to twenty times on
    batches that it is not trained on, and the best weights kept. The layers with cores run from their cores. Parameters
    that are frozen stay as they are, and ties hold. Ctrl-C ends it with the best weights so far. Under torchrun the
    processes share every step, and the result is that of one process with the same `batches_per_step`, up to rounding.

    Args:
        model: the model, trained in place; usually from `load` or `compress_module`, but any will do.
        data: batches: an iterable that can be gone through several times, a function that gives one and is called for
            every pass, `file.py:name` or `package.module:name` of either, or `SelfGenerated`. A batch is what the model
            is called with (a tensor, a mapping of named arguments, or a tuple of other than two), or a pair of that and
            a target.
        teacher: the original model, whose outputs are learnt; left as it is. None learns from targets alone.
        evaluate: your own measure: takes the model and returns a number, larger being better; or where it is.
        loss: takes the output of the model and a target and returns a scalar; or where it is. By default the one that
            suits the outputs, or that which the model computes itself.
        steps: how many at most; 1,000 where neither steps nor minutes are given.
        minutes: how long at most, by the clock.
        lr: the largest step size of AdamW, for every tensor. By default each tensor has its own: a share
            of the root mean square of its entries at the start, or of 0.01 where they are smaller; the share is larger,
            the further the outputs are from the teacher's.
        train: `all` parameters, or `cores` alone.
        kind: what the model puts out, which says how outputs are compared: `classification` (KL divergence),
            `embedding` (1 - cosine) or `regression` (squared error); told from the outputs by default.
        teacher_share: share of the distance to the teacher in the loss, the rest being the loss on targets; all without
            targets, and half with them by default.
        held_out: batches to measure on; by default one batch in eight of those at the beginning of the data, which are
            not trained on.
        carry_state: let every recurrent layer go on where it was at the end of the batch before, for batches that are
            consecutive pieces of the same texts.
        batches_per_step: batches of every step, over all processes; one for every process by default.
        precision: of the products; by default bfloat16 where a step is clearly faster with it here.
        seed: what is drawn with. The same seed, data and `precision` give the same result, if steps are given.
        snapshot: a file where the run is kept while it lasts, to `resume` it; it is removed at its end. None for none.
        resume: go on with the run in `snapshot`. The result is that of a run without a stop.
        progress: told how far the run is.

    Returns:
        The model and the figures.

    Raises:
        TuningError: nothing to learn from, data or a loss that do not fit, settings that mean nothing, or outputs that
            are NaN from the start. A loss that becomes NaN later ends the run with the best weights.
        OutputError: the snapshot cannot be written.
        CheckpointError: there is no run to resume.
        FormatError: the file of that run is damaged.

    Source:
        Hinton, Vinyals and Dean 2015, arXiv 1503.02531 (learning from a teacher); Loshchilov and Hutter 2019,
        "Decoupled Weight Decay Regularization", arXiv 1711.05101 (AdamW); Shazeer and Stern 2018, "Adafactor", arXiv
        1804.04235 (step sizes relative to the size of a tensor).

    Example:
        >>> import mpocompress
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> small, _ = mpocompress.compress_module(net, truncation=mpocompress.Truncation(max_bond=8))
        >>> found = finetune(small, [torch.randn(32, 64) for _ in range(16)], teacher=net, steps=40)
        >>> found.after.loss < found.before.loss
        True
    """
    recipe = Recipe(
        evaluate=evaluate,
        loss=loss,
        steps=steps,
        minutes=minutes,
        lr=lr,
        train=train,
        kind=kind,
        teacher_share=teacher_share,
        held_out=held_out,
        carry_state=carry_state,
        batches_per_step=batches_per_step,
        precision=precision,
        seed=seed,
    )
    keeping = Keeping(snapshot=None if snapshot is None else Path(snapshot), resume=resume)
    found = finetuned(model, data, teacher=teacher, recipe=recipe, keeping=keeping, progress=progress)
    if keeping.snapshot is not None and not found.report.is_interrupted and leads():
        keeping.snapshot.unlink(missing_ok=True)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where a run is kept while it lasts.

    Args:
        snapshot: the file; None for nowhere.
        resume: whether it goes on from there.
        fingerprint: what else a run has to have in common with one that it goes on from.
    """

    snapshot: Path | None = None
    resume: bool = False
    fingerprint: Mapping[str, str] = field(default_factory=dict)


def finetuned(
    model: nn.Module,
    data: object,
    *,
    teacher: nn.Module | None,
    recipe: Recipe,
    keeping: Keeping,
    progress: Callable[[TuningProgress], None] | None,
    teacher_name: str = "",
    notes: tuple[str, ...] = (),
    as_stored: Callable[[], bool] | None = None,
) -> FinetuneResult:
    """Do what `finetune` does, for a caller who knows more.

    Args:
        model: the model.
        data: what it is trained on.
        teacher: what it learns from.
        recipe: how.
        keeping: where the run is kept.
        progress: told how far it is.
        teacher_name: what the teacher is called in the report.
        notes: what the reader of the report should know besides.
        as_stored: called after the training; rounds the model's weights to what a file will hold, and says whether that
            changed any, in which case it is measured once more.

    Returns:
        The model and the figures.
    """
    device = _device(model, teacher)
    parameters = trained_parameters(model, recipe.train)
    score = score_function(recipe.evaluate) if isinstance(recipe.evaluate, str) else recipe.evaluate
    loss = loss_function(recipe.loss, TuningError) if isinstance(recipe.loss, str) else recipe.loss
    called_data, called_teacher = named_thing(data), teacher_name or named_thing(type(teacher) if teacher else None)
    kind = recipe.kind
    with ExitStack() as stack:
        mates = team(device)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_as_before(model, teacher))
        modes = Modes(model)
        stack.enter_context(_only_trained(model, parameters.values()))
        if teacher is not None:
            teacher.eval()
        if isinstance(data, SelfGenerated):
            if teacher is None:
                raise TuningError(
                    where="generated texts",
                    found="no teacher",
                    why="it is the original model that writes them",
                    action="Give the original model as the teacher, or data.",
                )
            if recipe.carry_state:
                raise TuningError(
                    where="generated texts",
                    found="a state that is carried from one to the next",
                    why="every text begins anew",
                    action="Leave carry_state out.",
                )
            data, kind = Generated(teacher, data, seed=recipe.seed, device=device), kind or "classification"
        each = _batches_per_step(recipe, mates)
        feed = Feed(data, held_out=recipe.held_out, seed=recipe.seed, consecutive=recipe.carry_state)
        model.eval()
        objective = objective_for(
            model, teacher, feed.first.on(device), loss=loss, share=recipe.teacher_share, kind=kind
        )
        carriers = [Carrier(one) for one in (model, teacher) if one is not None] if recipe.carry_state else []
        for one in carriers:
            stack.callback(one.remove)
        if mates.size > 1:
            mates.shared([*model.parameters(), *model.buffers()])
        fingerprint = {
            **recipe.words(),
            "data": called_data,
            "teacher": called_teacher,
            "batches_per_step": str(each),
            **keeping.fingerprint,
        }
        start = _start(keeping, fingerprint)
        settings = Settings(
            length=recipe.length,
            lr=recipe.lr,
            train=recipe.train,
            batches_per_step=each,
            seed=recipe.seed,
            snapshot=keeping.snapshot,
            fingerprint=fingerprint,
        )
        modes.train()
        stack.enter_context(from_cores(model))
        trial = Trial(model, teacher, objective, feed.first, carriers, device)
        way = from_words(start.way) if start is not None else _PRECISE
        if start is None and mates.leads:
            way = trial.way(recipe.precision)
        way = mates.told(way)
        has_unused = mates.size > 1 and mates.summed([float(trial.leaves_out(parameters.values(), way))])[0] > 0
        judge = Judge(
            model,
            teacher=teacher,
            objective=objective,
            held_out=feed.held_out,
            score=score,
            carriers=carriers,
            seed=recipe.seed,
            device=device,
        )
        run = Run(
            model,
            feed=feed,
            objective=objective,
            judge=judge,
            teacher=teacher,
            carriers=carriers,
            way=way,
            modes=modes,
            has_unused=has_unused,
            settings=settings,
            start=start,
            team=mates,
            progress=progress,
        )
        trace = run.go()
        is_rounded = as_stored is not None and as_stored()
        report = reported(
            trace,
            as_stored=judge.measured(trace.best_step) if is_rounded and mates.leads else None,
            data=called_data,
            teacher=called_teacher,
            objective=objective,
            feed=feed,
            settings=settings,
            way=way,
            trained=sum(one.numel() for one in parameters.values()),
            unrelated=judge.unrelated() if mates.leads else None,
            score=named_thing(recipe.evaluate),
            notes=(*notes, *half_notes(parameters.values())),
        )
    _remember(model, report)
    return FinetuneResult(model=model, report=report, elapsed_s=trace.elapsed_s)


def _device(model: nn.Module, teacher: nn.Module | None) -> torch.device:
    """Where the model is."""
    trained = {id(one) for one in model.parameters()}
    if teacher is not None and any(id(one) in trained for one in teacher.parameters()):
        raise TuningError(
            where="teacher",
            found="the model that is trained" if teacher is model else "parameters of the model that is trained",
            why="it would change with every step",
            action="Give the original model; `compress_module` leaves it as it is.",
        )
    places = {
        str(one.device)
        for each in (model, teacher)
        if each is not None
        for one in (*each.parameters(), *each.buffers())
    }
    if len(places) > 1:
        raise TuningError(
            where="model and teacher",
            found=f"parameters on {', '.join(sorted(places))}",
            why="they are called with the same batches",
            action="Move both to one device.",
        )
    return torch.device(next(iter(places), "cpu"))


def _batches_per_step(recipe: Recipe, mates: Team) -> int:
    """Batches of every step, over all processes."""
    found = recipe.batches_per_step or mates.size
    if found % mates.size:
        raise TuningError(
            where="batches_per_step",
            found=f"got {found} for {mates.size} processes",
            why="every process takes as many batches of a step",
            action=f"Give a multiple of {mates.size}.",
        )
    if recipe.carry_state and mates.size > 1:
        raise TuningError(
            where="carry_state",
            found=f"{mates.size} processes",
            why="the state goes on from one batch to the next, and these are in different processes",
            action="Train in one process.",
        )
    return found


def _start(keeping: Keeping, fingerprint: Mapping[str, str]) -> Snapshot | None:
    """The run to go on with; None to begin."""
    if not keeping.resume:
        return None
    if keeping.snapshot is None:
        raise TuningError(
            where="resume",
            found="no snapshot",
            why="it is not known what to go on with",
            action="Give the file that the run was kept in.",
        )
    return read_snapshot(keeping.snapshot, fingerprint)


@contextmanager
def _as_before(*models: nn.Module | None) -> Iterator[None]:
    """Put every module back into the mode it was in before the block."""
    modes = [(one, one.training) for model in models if model is not None for one in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _only_trained(model: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Ask for no gradients but those of what is trained, and leave none behind."""
    known = {id(one) for one in trained}
    frozen = [one for one in model.parameters() if one.requires_grad and id(one) not in known]
    for one in frozen:
        one.requires_grad = False
    try:
        yield
    finally:
        for one in frozen:
            one.requires_grad = True
        model.zero_grad(set_to_none=True)


def _remember(model: nn.Module, report: TuningReport) -> None:
    """Let the cores know of it, so that `save` writes it."""
    for weight in model.modules():
        record = record_of(weight) if isinstance(weight, MPOWeight) else None
        if isinstance(weight, MPOWeight) and record is not None:
            whole = dataclasses.replace(record.report, tuning=(*record.report.tuning, report))
            remember(weight, dataclasses.replace(record, report=whole))

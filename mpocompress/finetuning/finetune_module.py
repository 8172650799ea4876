"""Fine-tuning of a model in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mpocompress.finetuning.build_report import finetuning_report
from mpocompress.finetuning.options import FinetuneModuleOptions, RunOptions
from mpocompress.finetuning.process_rank import is_rank_zero
from mpocompress.finetuning.resume import SnapshotOptions, name_of
from mpocompress.finetuning.setup import set_up
from mpocompress.finetuning.trainer import Trainer
from mpocompress.modules.provenance import provenance_of, set_provenance
from mpocompress.nn import MPOWeight
from mpocompress.reports.finetuning import Evaluation, FinetuningReport
from mpocompress.user.options import with_keywords


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinetuneResult:
    """The outcome of fine-tuning.

    Args:
        model: the trained model, with its best weights.
        report: the report, which `save` writes into the file.
        elapsed_s: seconds spent.
    """

    __module__ = "mpocompress"

    model: nn.Module
    report: FinetuningReport
    elapsed_s: float

    def __repr__(self) -> str:
        """Return the course of the run in place of the model and the report."""
        losses = f"loss {self.before.loss:.4g} -> {self.after.loss:.4g}"
        return f"FinetuneResult({type(self.model).__name__}, {self.steps} steps, {losses}, {self.stopped})"

    @property
    def history(self) -> tuple[Evaluation, ...]:
        """All evaluations, from the start."""
        return self.report.evaluations

    @property
    def before(self) -> Evaluation:
        """Evaluation of the model at the start."""
        return self.report.before

    @property
    def after(self) -> Evaluation:
        """Evaluation of the model as it is now."""
        return self.report.after

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return self.report.steps

    @property
    def stopped(self) -> str:
        """`finished`, or why the run ended earlier."""
        return self.report.stop_reason


@with_keywords(FinetuneModuleOptions)
def finetune_module(model: nn.Module, data: object, options: FinetuneModuleOptions) -> FinetuneResult:
    """Train a compressed model, by default towards the outputs of the original one; no labels are needed.

    AdamW with a warm-up and a cosine schedule, gradients clipped to norm 1, the model evaluated up to twenty times on
    batches that it is not trained on, and the best weights kept. Layers with cores run from their cores. Frozen
    parameters do not change, and tied ones stay tied. Ctrl-C ends the run with the best weights so far. Under torchrun
    the processes share every step; the result is that of one process with the same `batches_per_step`, up to rounding.

    Args:
        model: the model, trained in place; usually from `load` or `compress_module`, but any module can be trained.
        data: the batches: an iterable that can be passed over several times, a function that returns one and is called
            for every pass, `file.py:name` or `package.module:name` of either, or `SelfGenerated`. A batch is the inputs
            of the model (a tensor, a mapping of named arguments, or a tuple of other than two), or a pair of inputs and
            a target.
        options: the options.

    Returns:
        The model and the report.

    Raises:
        FinetuneError: there is nothing to learn from, the data, loss and options do not fit each other, or outputs are
            NaN from the start. A loss that becomes NaN later ends the run with the best weights.
        OutputError: the snapshot cannot be written.
        CheckpointError: there is no run to resume.
        FormatError: the snapshot of the run to resume is damaged.

    Source:
        Hinton, Vinyals and Dean 2015, arXiv 1503.02531 (learning from a teacher); Loshchilov and Hutter 2019,
        "Decoupled Weight Decay Regularization", arXiv 1711.05101 (AdamW); Shazeer and Stern 2018, "Adafactor", arXiv
        1804.04235 (learning rates relative to the size of a tensor).

    Example:
        >>> import mpocompress, torch
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> small, _ = mpocompress.compress_module(net, truncation=mpocompress.Truncation(max_bond=8))
        >>> result = finetune_module(small, [torch.randn(32, 64) for _ in range(16)], teacher=net, steps=40)
        >>> result.after.loss < result.before.loss
        True
    """
    path = None if options.snapshot is None else Path(options.snapshot)
    snapshot = SnapshotOptions(path=path, resume=options.resume)
    result = train_model(model, options.teacher, data, options, snapshot=snapshot)
    if path is not None and not result.report.is_interrupted and is_rank_zero():
        path.unlink(missing_ok=True)
    return result


def train_model(
    model: nn.Module,
    teacher: nn.Module | None,
    data: object,
    options: RunOptions,
    *,
    snapshot: SnapshotOptions,
    teacher_name: str = "",
    notes: tuple[str, ...] = (),
    round_weights: Callable[[], bool] | None = None,
) -> FinetuneResult:
    """Train a model, and record it in the model for `save`.

    Args:
        model: the model, trained in place.
        teacher: the teacher; None to train on targets alone.
        data: the training data.
        options: how to train.
        snapshot: where the run is stored while it lasts.
        teacher_name: name of the teacher in the report; by default that of its class.
        notes: further notes for the report.
        round_weights: called after the training; rounds the weights of the model to the dtypes of a file, and returns
            whether that changed any, in which case the model is evaluated again.
    """
    name = teacher_name or name_of(type(teacher) if teacher is not None else None)
    with set_up(model, teacher, data, options, snapshot=snapshot, teacher_name=name) as setup:
        result = Trainer(setup).run()
        is_rounded = round_weights is not None and round_weights()
        report = finetuning_report(setup, result, notes=notes, is_rounded=is_rounded)
    _record(model, report)
    return FinetuneResult(model=model, report=report, elapsed_s=result.elapsed_s)


def _record(model: nn.Module, report: FinetuningReport) -> None:
    """Add the report to the provenance of the model's cores."""
    for weight in model.modules():
        provenance = provenance_of(weight) if isinstance(weight, MPOWeight) else None
        if isinstance(weight, MPOWeight) and provenance is not None:
            whole = dataclasses.replace(provenance.report, finetuning=(*provenance.report.finetuning, report))
            set_provenance(weight, dataclasses.replace(provenance, report=whole))

"""The measurements of `benchmarks/finetuning.py`: compressed models before and after fine-tuning."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import click
from torch import nn

import mpocompress
from benchmarks.finetuning_data import Material, material
from benchmarks.finetuning_pruned import Pruned
from benchmarks.finetuning_settings import Settings
from benchmarks.quality_baselines import BASELINES, Layers
from benchmarks.quality_models import Subject
from benchmarks.quality_rows import FRACTIONS, OURS
from benchmarks.second_moments import second_moments
from mpocompress import Truncation
from mpocompress.reports.finetuning import INTERRUPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method at one fraction on one model, fine-tuned with one seed.

    Args:
        model: Name of the model.
        method: Name of the method.
        keep: The requested fraction.
        seed: Seed of the order of the data and of all random numbers in training.
        dense_parameters: Entries of the weights that every method compresses.
        parameters: Parameters that the method stores for them.
        before: The scores before fine-tuning.
        after: The scores after fine-tuning.
        cpu_s: Processor time of fine-tuning.
        wall_s: Wall time of fine-tuning.
        start_cpu_s: Processor time of the compression, including calibration.
        steps: Steps done.
        best_step: Step of the selected weights.
        stopped: `finished`, or the reason of an early stop.
        precision: Precision of the products in training.
    """

    model: str
    method: str
    keep: str
    seed: int
    dense_parameters: int
    parameters: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    cpu_s: float
    wall_s: float
    start_cpu_s: float
    steps: int
    best_step: int
    stopped: str
    precision: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Identifies the row among all rows."""
        return self.model, self.method, self.keep, self.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A compressed model before training.

    Args:
        model: The model; a copy is trained.
        finished: Trained copy -> the model to evaluate.
        parameters: Parameters stored for the compressed weights.
        cpu_s: Processor time of the compression.
    """

    model: nn.Module
    finished: Callable[[nn.Module], nn.Module]
    parameters: int
    cpu_s: float


def rows(
    subject: Subject,
    settings: Settings,
    *,
    methods: Sequence[str],
    keeps: Sequence[str],
    seeds: Sequence[int],
    is_known: Callable[[tuple[str, str, str, int]], bool],
) -> Iterator[Row]:
    """Compress a model, score it, fine-tune it with every seed, and score it again.

    Args:
        subject: The model; training uses only the outputs of its dense weights.
        settings: Settings of the fine-tuning.
        methods: Names of methods.
        keeps: Names of fractions.
        seeds: Seeds of training.
        is_known: Key -> whether the row already exists.
    """
    requested = [(method, keep) for keep in keeps for method in methods]
    missing = {
        pair: open_seeds
        for pair in requested
        if (open_seeds := [seed for seed in seeds if not is_known((subject.name, *pair, seed))])
    }
    if not missing:
        return
    data = material(subject.training(), settings)
    layers = _layers(subject)
    for (method, keep), open_seeds in missing.items():
        start = (_ours if method in OURS else _pruned)(subject, layers, method, keep)
        before = subject.scores(start.finished(start.model))
        click.echo(f"{subject.name}: {method}, keep {keep}: {subject.shown(before[0])} before", err=True)
        for seed in open_seeds:
            row = _finetuned(subject, settings, data, start, before, layers.parameters, method, keep, seed)
            click.echo(
                f"{subject.name}: {method}, keep {keep}, seed {seed}: {subject.shown(row.after[0])}, {row.cpu_s:.0f} "
                f"CPU s, best step {row.best_step} of {row.steps}, {row.stopped}, {row.precision}",
                err=True,
            )
            yield row


def _finetuned(
    subject: Subject,
    settings: Settings,
    data: Material,
    start: Start,
    before: tuple[float, ...],
    dense_parameters: int,
    method: str,
    keep: str,
    seed: int,
) -> Row:
    """Fine-tune a copy and score it."""
    model = copy.deepcopy(start.model)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    result = mpocompress.finetune_module(
        model,
        data.batches,
        teacher=subject.module,
        steps=settings.steps_at.get(keep, settings.steps),
        lr=settings.lr,
        kind=settings.kind,
        held_out=data.held_out,
        carry_state=settings.carry_state,
        batches_per_step=settings.batches_per_step,
        precision=settings.precision,
        seed=seed,
    )
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    if result.stopped == INTERRUPTED:
        raise click.Abort
    return Row(
        model=subject.name,
        method=method,
        keep=keep,
        seed=seed,
        dense_parameters=dense_parameters,
        parameters=start.parameters,
        before=before,
        after=subject.scores(start.finished(model)),
        cpu_s=cpu_s,
        wall_s=wall_s,
        start_cpu_s=start.cpu_s,
        steps=result.steps,
        best_step=result.report.best_step,
        stopped=result.stopped,
        precision=result.report.precision,
    )


def _layers(subject: Subject) -> Layers:
    """The weights that mpocompress compresses, and the second moments of their inputs."""
    _, report = mpocompress.compress_module(subject.module, truncation=Truncation(max_bond=1), jobs=1)
    weights = [name for matrix in report.matrices for name in matrix.members]
    state = subject.module.state_dict()
    return Layers(
        weights={name: state[name].double() for name in weights},
        moments=second_moments(subject.module, subject.calibration, weights),
    )


def _ours(subject: Subject, layers: Layers, method: str, keep: str) -> Start:
    arguments = dict(OURS[method])
    if arguments.pop("calibration", False):
        arguments["calibration"] = mpocompress.CalibrationInputs(
            batches=subject.calibration, samples=sum(map(len, subject.calibration))
        )
    started = time.process_time()
    small, report = mpocompress.compress_module(
        subject.module, truncation=Truncation(keep=FRACTIONS[keep]), jobs=1, **arguments
    )
    return Start(
        model=small,
        finished=lambda model: model,
        parameters=report.totals.eligible_parameters_after,
        cpu_s=time.process_time() - started,
    )


def _pruned(subject: Subject, layers: Layers, method: str, keep: str) -> Start:
    started = time.process_time()
    baseline = BASELINES[method](layers, FRACTIONS[keep])
    model = Pruned(subject.with_weights(baseline.weights), baseline.weights)
    return Start(model=model, finished=_dense, parameters=baseline.parameters, cpu_s=time.process_time() - started)


def _dense(model: nn.Module) -> nn.Module:
    if not isinstance(model, Pruned):
        raise TypeError(f"expected a pruned model, got {type(model).__name__}")
    return model.dense()

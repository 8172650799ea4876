"""The measurements of `benchmarks/healing.py`: a model made smaller in several ways, each as it is and fine-tuned."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import click
from torch import nn

import mpocompress
from benchmarks.healing_data import Material, material
from benchmarks.healing_pruned import Pruned
from benchmarks.healing_settings import Settings
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
        model: name of the model.
        method: name of the method.
        keep: the fraction that was asked for.
        seed: of the order of the data, and of all that is drawn in training.
        dense_parameters: entries of the weights that every method compresses.
        parameters: what the method stores for them.
        untuned: the figures before fine-tuning, as the model counts.
        tuned: the figures after it.
        cpu_s: processor time of fine-tuning.
        wall_s: the same by the clock.
        start_cpu_s: processor time of making the model smaller; calibration included.
        steps: steps done.
        best_step: the step whose weights were kept.
        stopped: `finished`, or why it ended earlier.
        precision: of the products in training.
    """

    model: str
    method: str
    keep: str
    seed: int
    dense_parameters: int
    parameters: int
    untuned: tuple[float, ...]
    tuned: tuple[float, ...]
    cpu_s: float
    wall_s: float
    start_cpu_s: float
    steps: int
    best_step: int
    stopped: str
    precision: str

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What tells it from all other rows."""
        return self.model, self.method, self.keep, self.seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A model made smaller, not yet trained.

    Args:
        model: to be copied, and the copy trained.
        finished: gives of a trained copy the model that is measured.
        parameters: what is stored for the compressed weights.
        cpu_s: processor time of making it.
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
    """Make a model smaller, measure it, fine-tune it with every seed, and measure it again.

    Args:
        subject: the model; the outputs of its dense weights are all that is learnt from.
        settings: how it is fine-tuned.
        methods: names of methods.
        keeps: names of fractions.
        seeds: of training.
        is_known: whether a row need not be made, told by its place.
    """
    wanted = [(method, keep) for keep in keeps for method in methods]
    missing = {
        each: left for each in wanted if (left := [seed for seed in seeds if not is_known((subject.name, *each, seed))])
    }
    if not missing:
        return
    data = material(subject.training(), settings)
    layers = _layers(subject)
    for (method, keep), left in missing.items():
        start = (_ours if method in OURS else _pruned)(subject, layers, method, keep)
        untuned = subject.scores(start.finished(start.model))
        click.echo(f"{subject.name}: {method}, keep {keep}: {subject.shown(untuned[0])} untuned", err=True)
        for seed in left:
            row = _healed(subject, settings, data, start, untuned, layers.parameters, method, keep, seed)
            click.echo(
                f"{subject.name}: {method}, keep {keep}, seed {seed}: {subject.shown(row.tuned[0])}, {row.cpu_s:.0f} "
                f"CPU s, the best of {row.steps} steps {row.best_step}, {row.stopped}, {row.precision}",
                err=True,
            )
            yield row


def _healed(
    subject: Subject,
    settings: Settings,
    data: Material,
    start: Start,
    untuned: tuple[float, ...],
    dense_parameters: int,
    method: str,
    keep: str,
    seed: int,
) -> Row:
    """Fine-tune a copy and measure it."""
    model = copy.deepcopy(start.model)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    found = mpocompress.finetune(
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
    if found.stopped == INTERRUPTED:
        raise click.Abort
    return Row(
        model=subject.name,
        method=method,
        keep=keep,
        seed=seed,
        dense_parameters=dense_parameters,
        parameters=start.parameters,
        untuned=untuned,
        tuned=subject.scores(start.finished(model)),
        cpu_s=cpu_s,
        wall_s=wall_s,
        start_cpu_s=start.cpu_s,
        steps=found.steps,
        best_step=found.report.best_step,
        stopped=found.stopped,
        precision=found.report.precision,
    )


def _layers(subject: Subject) -> Layers:
    """The weights that mpocompress finds, and the second moments of what they are multiplied with."""
    _, report = mpocompress.compress_module(subject.module, truncation=Truncation(max_bond=1), jobs=1)
    weights = [name for matrix in report.matrices for name in matrix.members]
    state = subject.module.state_dict()
    return Layers(
        weights={name: state[name].double() for name in weights},
        moments=second_moments(subject.module, subject.calibration, weights),
    )


def _ours(subject: Subject, layers: Layers, method: str, keep: str) -> Start:
    asked = dict(OURS[method])
    if asked.pop("calibration", False):
        asked["calibration"] = mpocompress.CalibrationInputs(
            batches=subject.calibration, samples=sum(map(len, subject.calibration))
        )
    started = time.process_time()
    small, report = mpocompress.compress_module(
        subject.module, truncation=Truncation(keep=FRACTIONS[keep]), jobs=1, **asked
    )
    return Start(
        model=small,
        finished=lambda model: model,
        parameters=report.totals.eligible_parameters_after,
        cpu_s=time.process_time() - started,
    )


def _pruned(subject: Subject, layers: Layers, method: str, keep: str) -> Start:
    started = time.process_time()
    made = BASELINES[method](layers, FRACTIONS[keep])
    model = Pruned(subject.with_weights(made.weights), made.weights)
    return Start(model=model, finished=_dense, parameters=made.parameters, cpu_s=time.process_time() - started)


def _dense(model: nn.Module) -> nn.Module:
    if not isinstance(model, Pruned):
        raise TypeError(f"a {type(model).__name__}, where a pruned model was trained")
    return model.dense()

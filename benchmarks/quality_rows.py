"""The measurements of `benchmarks/quality.py`: every method at every fraction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

import mpocompress
from benchmarks.quality_baselines import BASELINES, FLOAT_BYTES, Layers, rounded
from benchmarks.quality_models import Subject
from benchmarks.second_moments import second_moments
from mpocompress import MPOCompressError, Truncation
from mpocompress.benchmarking.torch_int8 import int8_copy

DATA_FREE, DATA_AWARE, DATA_AWARE_INT8 = "mpocompress", "mpocompress + data", "mpocompress + data, int8"
DENSE = "not compressed"
INT8_WEIGHTS, DYNAMIC_INT8 = "int8 weights", "dynamic int8"
WHOLE = "all"
FRACTIONS: Mapping[str, float] = {"1/2": 1 / 2, "1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16, "1/32": 1 / 32}
OURS: Mapping[str, Mapping[str, Any]] = {
    DATA_FREE: {},
    DATA_AWARE: {"calibration": True},
    DATA_AWARE_INT8: {"calibration": True, "dtype": "int8"},
    "balanced MPO": {"sites": 2},
    "balanced MPO + data": {"sites": 2, "calibration": True},
}
"""Method -> arguments of `compress_module`; `calibration` stands for the inputs of the model."""
WHOLES = (DENSE, INT8_WEIGHTS, DYNAMIC_INT8)
"""Methods that keep every parameter; all but the first store a quarter of the bytes."""
METHODS = (*OURS, *BASELINES, *WHOLES[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method at one fraction on one model.

    Args:
        model: Name of the model.
        method: Name of the method.
        keep: The requested fraction; `all` for a method without one.
        dense_parameters: Entries of the weights that every method compresses.
        parameters: Parameters that the method stores for them.
        size_bytes: Their size.
        scores: The scores of the model; empty if the method refused.
        cpu_s: Processor time of compression, including calibration; only for mpocompress.
        refused: Message of the refusal, or empty.
    """

    model: str
    method: str
    keep: str
    dense_parameters: int
    parameters: int
    size_bytes: int
    scores: tuple[float, ...]
    cpu_s: float | None = None
    refused: str = ""

    @property
    def times_fewer(self) -> float:
        """Dense parameters divided by stored parameters."""
        return self.dense_parameters / self.parameters if self.parameters else float("nan")


def rows(subject: Subject, methods: Sequence[str], keeps: Sequence[str]) -> Iterator[Row]:
    """Measure the dense model, then methods out of `METHODS` at fractions out of `FRACTIONS`."""
    _, report = mpocompress.compress_module(subject.module, truncation=Truncation(max_bond=1), jobs=1)
    weights = [name for matrix in report.matrices for name in matrix.members]
    state = subject.module.state_dict()
    layers = Layers(
        weights={name: state[name].double() for name in weights},
        moments=second_moments(subject.module, subject.calibration, weights),
    )
    for method in (DENSE, *methods):
        for keep in [WHOLE] if method in WHOLES else keeps:
            if method in WHOLES:
                row = _whole(subject, layers, method)
            elif method in OURS:
                row = _ours(subject, layers, method, keep)
            else:
                row = _baseline(subject, layers, method, keep)
            outcome = row.refused or ", ".join(subject.shown(score) for score in row.scores)
            click.echo(f"{subject.name}: {method}, keep {keep}: {outcome}", err=True)
            yield row


def _ours(subject: Subject, layers: Layers, method: str, keep: str) -> Row:
    arguments = dict(OURS[method])
    refused = Row(
        model=subject.name,
        method=method,
        keep=keep,
        dense_parameters=layers.parameters,
        parameters=0,
        size_bytes=0,
        scores=(),
        refused="",
    )
    if arguments.pop("calibration", False):
        arguments["calibration"] = mpocompress.CalibrationInputs(
            batches=subject.calibration, samples=sum(map(len, subject.calibration))
        )
    started = time.process_time()
    try:
        small, report = mpocompress.compress_module(
            subject.module, truncation=Truncation(keep=FRACTIONS[keep]), jobs=1, **arguments
        )
    except MPOCompressError as error:
        return replace(refused, refused=str(error))
    cpu_s = time.process_time() - started
    totals = report.totals
    return replace(
        refused,
        parameters=totals.eligible_parameters_after,
        size_bytes=totals.size_bytes_after - totals.size_bytes_before + FLOAT_BYTES * layers.parameters,
        scores=subject.scores(small),
        cpu_s=cpu_s,
        refused="",
    )


def _baseline(subject: Subject, layers: Layers, method: str, keep: str) -> Row:
    baseline = BASELINES[method](layers, FRACTIONS[keep])
    return Row(
        model=subject.name,
        method=method,
        keep=keep,
        dense_parameters=layers.parameters,
        parameters=baseline.parameters,
        size_bytes=baseline.size_bytes,
        scores=subject.scores(subject.with_weights(baseline.weights)),
    )


def _whole(subject: Subject, layers: Layers, method: str) -> Row:
    models = {
        DENSE: lambda: subject.module,
        INT8_WEIGHTS: lambda: subject.with_weights(rounded(layers)),
        DYNAMIC_INT8: lambda: int8_copy(subject.module),
    }
    return Row(
        model=subject.name,
        method=method,
        keep=WHOLE,
        dense_parameters=layers.parameters,
        parameters=layers.parameters,
        size_bytes=layers.parameters * (FLOAT_BYTES if method == DENSE else 1),
        scores=subject.scores(models[method]()),
    )

"""Compressing every matrix by its weights alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.compression.job import Done, Task, put_aside
from mpocompress.compression.reporting import compressed_report, dense_report, no_fewer_bytes
from mpocompress.compression.survey import (
    LayerSurvey,
    Surveyed,
    find_layers,
    put_together,
    read_matrix,
    survey_checkpoint,
    survey_layer,
    working_bytes,
)
from mpocompress.jobs import Progress, run_jobs
from mpocompress.layers.specs import LayerSpec
from mpocompress.mpo.memory import keeping_memory
from mpocompress.mpo.quantisation import quantise, rounded
from mpocompress.mpo.sites import low_rank
from mpocompress.mpo.tt_svd import Decomposition, factorise, factorise_within, measured_error
from mpocompress.planning.plan import MatrixPlan, Survey, check_patterns, make_plan
from mpocompress.reports.compression import INT8, ROUNDING_TOLERANCE


def carry_out(task: Task, *, jobs: int, progress: Progress | None) -> tuple[Surveyed, tuple[Done, ...]]:
    """Decompose every matrix of a checkpoint.

    A target for every matrix alone is reached layer by layer, each weight read once. A budget over all of them needs
    all surveys before the first bond is chosen.

    Args:
        task: what is to be done.
        jobs: layers or matrices worked on at the same time.
        progress: told how far the work is.

    Returns:
        The survey, and every matrix of the chosen forms, in file order.

    Raises:
        CheckpointError: nothing to compress, or compressed already.
        SelectionError: a pattern that matches nothing.
        TargetError: a target that no choice of bonds meets.
        OutputError: cores cannot be put aside.
    """
    size = partial(working_bytes, truncations=[task.truncation])
    if not task.truncation.is_budget:
        found = find_layers(task.checkpoint, task.selection, task.model)
        check_patterns(found.layers, task.truncation)
        visit = partial(_visit, task=task)
        with keeping_memory():
            visits = run_jobs(visit, found.layers, jobs=jobs, step="decomposing", progress=progress, size_bytes=size)
        surveyed = put_together(task.checkpoint, found, [look for look, _ in visits])
        check_patterns(surveyed.layers, task.truncation)
        return surveyed, tuple(done for _, results in visits for done in results)
    surveyed = survey_checkpoint(
        task.checkpoint,
        selection=task.selection,
        sites=task.sites,
        truncations=[task.truncation],
        jobs=jobs,
        model=task.model,
        progress=progress,
    )
    plan = make_plan(surveyed.layers, surveyed.surveys, task.truncation, surveyed.other_parameters)
    done = run_jobs(
        partial(decomposed, task=task, surveys=surveyed.surveys),
        plan.matrices,
        jobs=jobs,
        step="decomposing",
        progress=progress,
        size_bytes=lambda entry: 3 * 4 * entry.matrix.dense_parameters,
    )
    return surveyed, tuple(done)


def _visit(layer: LayerSpec, *, task: Task) -> tuple[LayerSurvey, tuple[Done, ...]]:
    """Survey, plan and decompose one layer; what is handed back holds no weights."""
    look = survey_layer(
        layer,
        checkpoint=task.checkpoint,
        selection=task.selection,
        sites=task.sites,
        truncations=[task.truncation],
        predict=False,
    )
    if look.layer is None:
        return look, ()
    plan = make_plan([look.layer], look.surveys, task.truncation, 0, check=False)
    straight = all(entry.sites == low_rank(*entry.matrix.shape) for entry in plan.matrices)
    # Reordered, it is read again: both orders at once would take twice the memory.
    weight, look = (look.matrix if straight else None), look.without_weights()
    return look, tuple(decomposed(entry, task=task, surveys=look.surveys, weight=weight) for entry in plan.matrices)


def decomposed(entry: MatrixPlan, *, task: Task, surveys: Mapping[str, Survey], weight: Tensor | None = None) -> Done:
    """Carry out the plan of one matrix, measure what it lost, and put its cores aside.

    Args:
        entry: the plan.
        task: what is to be done.
        surveys: what is known of every matrix.
        weight: the matrix, where it was read already.

    Returns:
        What became of it.
    """
    norm = surveys[entry.matrix.name].squared_norm
    dense = dense_report(entry.layer, entry.kind, entry.matrix, norm)
    if entry.sites is None:
        return Done(report=dataclasses.replace(dense, reason=entry.reason))
    source = entry.matrix.members[0].dtype
    stored, budget = task.dtype or source, task.truncation.error_budget
    weight = read_matrix(entry.matrix, task.checkpoint) if weight is None else weight
    if budget is None:
        result = factorise(weight, entry.sites, bonds=entry.bonds, norm=norm)
        mpo = rounded(result.mpo, torch_dtype(stored))
        error = measured_error(weight, mpo, norm)
    else:
        result, mpo, error = factorise_within(
            weight, entry.sites, relative_error=budget, stored=torch_dtype(stored), norm=norm
        )
    reason = ""
    if not math.isfinite(error) or _lost_in_rounding(result, error, stored):
        reason = f"its cores cannot be stored as {stored} without losing more than the truncation"
    elif too_large := no_fewer_bytes(entry.matrix, mpo.parameters, mpo.bonds, stored):
        reason = too_large
    elif budget is not None and (error > budget or mpo.parameters >= entry.matrix.dense_parameters):
        reason = f"no smaller MPO in {stored} keeps a relative error of {budget:.4g}"
    if reason:
        return Done(report=dataclasses.replace(dense, reason=reason))
    made = quantise(result.mpo) if stored == INT8 else mpo
    return put_aside(compressed_report(entry, result, mpo, error, stored), made, task.spool)


def _lost_in_rounding(result: Decomposition, error: float, stored: str) -> bool:
    """Whether rounding the cores to their dtype lost what it may not: their numbers are too small or large for it."""
    rounding = error**2 * result.squared_norm - sum(result.discarded_weights)
    return abs(rounding) > ROUNDING_TOLERANCE[stored] * result.squared_norm

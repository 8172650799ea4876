"""Compress every matrix of a checkpoint without calibration data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.compression.build_report import compressed_report, dense_report, reason_to_keep_dense
from mpocompress.compression.job import CompressedMatrix, CompressionJob, Outcome, spool_matrix
from mpocompress.compression.survey import (
    FLOAT32_BYTES,
    LayerSurvey,
    find_layers,
    join_surveys,
    read_matrix,
    survey_checkpoint,
    survey_layer,
    working_bytes,
)
from mpocompress.layers.specs import LayerSpec
from mpocompress.mpo.memory import keeping_memory
from mpocompress.mpo.quantisation import quantise, rounded
from mpocompress.mpo.tt_svd import FiniteMatrix, factorise, factorise_within, measured_error
from mpocompress.parallel import Progress, run_jobs
from mpocompress.planning.bond_choice import BondChoice, check_globs, choose_bonds
from mpocompress.planning.curves import MatrixCurves
from mpocompress.reports.matrix import INT8, ROUNDING_TOLERANCE

SWEEP_COPIES = 3
"""Copies in float32 of a matrix that exist at once while it is decomposed."""


def compress_data_free(job: CompressionJob, *, jobs: int, progress: Progress | None) -> Outcome:
    """Compress every matrix of a checkpoint by its weights alone.

    Args:
        job: the compression.
        jobs: layers or matrices processed at the same time.
        progress: called with the progress of the work.

    Raises:
        CheckpointError: nothing can be compressed, or the checkpoint is compressed.
        SelectionError: a glob that matches nothing.
        TargetError: a target that no bonds meet.
        OutputError: the disk is full.
    """
    by_budget = job.target.is_budget
    return (_compress_by_budget if by_budget else _compress_by_layer)(job, jobs=jobs, progress=progress)


def _compress_by_layer(job: CompressionJob, *, jobs: int, progress: Progress | None) -> Outcome:
    """Compress layer by layer: the target applies to every matrix separately, so each layer is finished at once."""
    discovery = find_layers(job.checkpoint, job.selection, job.model)
    check_globs(discovery.layers, job.target)
    compress_layer = partial(_compress_layer, job=job)
    size = partial(working_bytes, targets=[job.target])
    with keeping_memory():
        layers = run_jobs(
            compress_layer, discovery.layers, jobs=jobs, step="decomposing", progress=progress, size_bytes=size
        )
    survey = join_surveys(job.checkpoint, discovery, [layer for layer, _ in layers])
    # Again, because layers whose weights hold NaN or Inf were lost in between: a glob may have matched these alone.
    check_globs(survey.layers, job.target)
    return Outcome(survey=survey, matrices=tuple(matrix for _, matrices in layers for matrix in matrices))


def _compress_by_budget(job: CompressionJob, *, jobs: int, progress: Progress | None) -> Outcome:
    """Survey all layers, then share the budget among them, then compress matrix by matrix."""
    survey = survey_checkpoint(
        job.checkpoint,
        selection=job.selection,
        sites=job.sites,
        targets=[job.target],
        jobs=jobs,
        model=job.model,
        progress=progress,
    )
    matrices = run_jobs(
        partial(compress_matrix, job=job, curves=survey.curves),
        choose_bonds(survey.layers, survey.curves, job.target, survey.other_parameters),
        jobs=jobs,
        step="decomposing",
        progress=progress,
        size_bytes=lambda choice: SWEEP_COPIES * FLOAT32_BYTES * choice.matrix.dense_parameters,
    )
    return Outcome(survey=survey, matrices=tuple(matrices))


def _compress_layer(layer: LayerSpec, *, job: CompressionJob) -> tuple[LayerSurvey, tuple[CompressedMatrix, ...]]:
    """Survey one layer, choose its bonds, and compress its matrices."""
    survey = survey_layer(
        layer,
        checkpoint=job.checkpoint,
        selection=job.selection,
        sites=job.sites,
        targets=[job.target],
        predict=False,
    )
    if survey.layer is None:
        return survey, ()
    choices = choose_bonds([survey.layer], survey.curves, job.target, 0, check=False)
    return survey, tuple(compress_matrix(choice, job=job, curves=survey.curves) for choice in choices)


def compress_matrix(choice: BondChoice, *, job: CompressionJob, curves: Mapping[str, MatrixCurves]) -> CompressedMatrix:
    """Decompose one matrix, measure its error, and write its cores to the spool; or keep it dense.

    Args:
        choice: its site shape and bonds.
        job: the compression.
        curves: the error curves of every matrix, by name.

    Raises:
        OutputError: the disk is full.
    """
    norm = curves[choice.matrix.name].squared_norm
    dense = dense_report(choice.layer, choice.kind, choice.matrix, norm)
    if choice.sites is None:
        return CompressedMatrix(report=dataclasses.replace(dense, reason=choice.reason))
    stored, error_limit = job.dtype or choice.matrix.members[0].dtype, job.target.error_limit
    weight = FiniteMatrix(entries=read_matrix(choice.matrix, job.checkpoint), squared_norm=norm)
    if error_limit is None:
        result = factorise(weight, choice.sites, bonds=choice.bonds)
        mpo = rounded(result.mpo, torch_dtype(stored))
        error = measured_error(weight, mpo)
    else:
        result, mpo, error = factorise_within(
            weight, choice.sites, relative_error=error_limit, stored=torch_dtype(stored)
        )
    # What storing the cores in their dtype adds to the error; a little negative if rounding happens to reduce it.
    rounding_weight = error**2 * norm - sum(result.discarded_weights)
    reason = reason_to_keep_dense(
        choice.matrix,
        mpo,
        error,
        stored,
        error_limit=error_limit,
        is_lost=abs(rounding_weight) > ROUNDING_TOLERANCE[stored] * norm,
    )
    if reason:
        return CompressedMatrix(report=dataclasses.replace(dense, reason=reason))
    report = compressed_report(
        choice,
        norm,
        mpo,
        error,
        stored,
        discarded_weights=result.discarded_weights,
        rounding_weight=rounding_weight,
    )
    return spool_matrix(report, quantise(result.mpo) if stored == INT8 else mpo, job.spool)

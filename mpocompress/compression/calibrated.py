"""Compress every matrix of a checkpoint with calibration data.

Bonds are chosen by the effect on the model's outputs, cores are fitted to the inputs of each layer and refitted in the
order in which the layers run, and the outputs of the compressed model are compared with those of the original.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.calibration.refit import CrossMoments, refit, shifted_target
from mpocompress.calibration.trial_model import TrialModel
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.compression.build_report import compressed_report, dense_report, reason_to_keep_dense
from mpocompress.compression.data_free import compress_matrix
from mpocompress.compression.job import CompressedMatrix, CompressionJob, Outcome, spool_matrix
from mpocompress.compression.sensitivity import divergence_with, weighted_survey
from mpocompress.compression.survey import CheckpointSurvey, read_matrix, survey_checkpoint
from mpocompress.compression.weighted_matrix import (
    Approximation,
    WeightedMatrix,
    approximate,
    best_shape,
    refitted,
    updated_tensors,
)
from mpocompress.layers.specs import split_members
from mpocompress.mpo.quantisation import QuantisedMPO, quantise, restore, rounded
from mpocompress.mpo.sites import candidates, low_rank
from mpocompress.mpo.tt_svd import FiniteMatrix, measured_error
from mpocompress.parallel import Progress
from mpocompress.planning.bond_choice import BondChoice, choose_bonds
from mpocompress.reports.calibration import BEYOND, CalibrationReport
from mpocompress.reports.matrix import INT8
from mpocompress.user.batches import Batch

SHAPES_BELOW = 0.1
"""Fraction of its parameters below which a matrix is tried in other site shapes than low rank."""
MIXES = (0.5, 0.2, 0.8)
"""Weights of the inputs of the compressed model that a refit is tried with, in this order."""
NO_REFIT = 1.0
"""The mix of cores that were not refitted."""
ROUNDING_COST = 0.01
"""Share of the divergence of the outputs that storing one matrix in int8 may add to it."""
ROUNDING_FREE = 1e-3
"""Divergence that it may add in any case: in nats, or as a share of that between outputs for different inputs."""
INSTEAD_OF_INT8 = "float16"
NOT_COMPARABLE = "The outputs of the compressed model are not finite, or of another shape, on calibration inputs."
NOT_SEEN = "its module has custom code, or the given model does not contain it"


def compress_calibrated(
    job: CompressionJob, calibration: Calibration, *, measure: bool, jobs: int, progress: Progress | None
) -> Outcome:
    """Compress every matrix of a checkpoint with calibration data.

    Args:
        job: the compression.
        calibration: the calibration; measured sensitivities are added to it.
        measure: whether to measure sensitivities that this target does not need.
        jobs: layers processed at the same time while the checkpoint is surveyed.
        progress: called with the progress of the work.

    Raises:
        CheckpointError: nothing can be compressed, or the checkpoint is compressed.
        SelectionError: a glob that matches nothing.
        TargetError: a target that no bonds meet.
        OutputError: the disk is full.
    """
    survey = survey_checkpoint(
        job.checkpoint,
        selection=job.selection,
        sites=job.sites,
        targets=[job.target],
        jobs=jobs,
        model=job.model,
        progress=progress,
    )
    measure = measure or job.target.is_budget
    survey, weighted = weighted_survey(survey, job.checkpoint, calibration, measure=measure, progress=progress)
    choices = [
        _in_best_shape(choice, weighted.get(choice.matrix.name), job)
        for choice in choose_bonds(survey.layers, survey.curves, job.target, survey.other_parameters)
    ]
    fitted = {choice.matrix.name: choice for choice in choices if choice.sites and choice.matrix.name in weighted}
    plain = {
        choice.matrix.name: compress_matrix(choice, job=job, curves=survey.curves)
        for choice in choices
        if choice.matrix.name not in fitted
    }
    approximations, sensitivities, mix = _approximations(fitted, weighted, job, calibration, progress)
    dtypes = _stored_dtypes(approximations, job, calibration.trial_model, progress)
    matrices, stored = [], []
    for choice in choices:
        name = choice.matrix.name
        if name in plain:
            matrices.append(plain[name])
            continue
        norm = survey.curves[name].squared_norm
        matrix, approximation = _store(
            approximations[name], choice, job, norm, dtype=dtypes[name], sensitivity=sensitivities.get(name)
        )
        matrices.append(matrix)
        stored += [approximation] if approximation is not None else []
    report = _calibration_report(calibration, survey, weighted, mix)
    if calibration.trial_model is not None:
        _notify(progress, "measuring", 0, 1)
        tensors = updated_tensors(stored) | _dense_tensors(plain.values(), job)
        report = _with_divergence(report, calibration.trial_model, tensors)
    if report.divergence == BEYOND:
        survey = dataclasses.replace(survey, unmet=(*survey.unmet, NOT_COMPARABLE))
    wide = [name for name, dtype in dtypes.items() if job.dtype == INT8 and dtype != INT8]
    return Outcome(
        survey=survey,
        matrices=tuple(matrices),
        biases=_biases(stored, job),
        notes=tuple(f"{name} is stored in {INSTEAD_OF_INT8}: int8 would change the outputs too much." for name in wide),
        calibration=report,
    )


def _in_best_shape(choice: BondChoice, weighted: WeightedMatrix | None, job: CompressionJob) -> BondChoice:
    """Return a choice in the site shape that is the best at its number of parameters."""
    is_small = choice.parameters <= SHAPES_BELOW * choice.matrix.dense_parameters
    if weighted is None or choice.sites is None or job.sites != "auto" or not (is_small and job.target.is_budget):
        return choice
    sites, bonds = best_shape(weighted, choice.sites, choice.bonds, candidates(*choice.matrix.shape, "auto"))
    return dataclasses.replace(choice, sites=sites, bonds=bonds, parameters=sites.parameters(bonds))


def _approximations(
    choices: Mapping[str, BondChoice],
    weighted: Mapping[str, WeightedMatrix],
    job: CompressionJob,
    calibration: Calibration,
    progress: Progress | None,
) -> tuple[dict[str, Approximation], dict[str, float], float]:
    """Fit every matrix, and refit all if that brings the outputs nearer to the original ones.

    Returns:
        The approximations by name; the divergence of the outputs with each matrix alone approximated, before the refit;
        and the mix of the refit.
    """
    approximations = {}
    for done, (name, choice) in enumerate(choices.items()):
        _notify(progress, "fitting", done, len(choices))
        matrix = weighted[name]
        sites = choice.sites or low_rank(*matrix.matrix.shape)
        approximations[name] = approximate(matrix, matrix.fitted(sites, choice.bonds))
    trial_model = calibration.trial_model
    if trial_model is None or not approximations:
        return approximations, {}, NO_REFIT
    sensitivities = {
        name: divergence_with(trial_model, updated_tensors([approximation]))
        for name, approximation in approximations.items()
    }
    if job.target.error_limit is not None or not _has_shifted_inputs(approximations.values()):
        return approximations, sensitivities, NO_REFIT  # a refit would increase the weighted errors of the target
    mix = _best_mix(approximations, calibration, trial_model, progress)
    if mix != NO_REFIT:
        _notify(progress, "refitting", 0, 1)
        approximations = _refitted(approximations, calibration, trial_model, trial_model.batches.learning, mix)
    return approximations, sensitivities, mix


def _has_shifted_inputs(approximations: Iterable[Approximation]) -> bool:
    """Return whether a layer may get other inputs, because of layers before it or of its own recurrence."""
    units = [approximation.weighted.unit for approximation in approximations]
    return len({unit.name for unit in units}) > 1 or any(len(unit.members) > 1 for unit in units)


def _best_mix(
    approximations: Mapping[str, Approximation],
    calibration: Calibration,
    trial_model: TrialModel,
    progress: Progress | None,
) -> float:
    """Return the mix whose refit gives the smallest divergence, on other inputs than those it was fitted to."""
    divergences = {NO_REFIT: divergence_with(trial_model, updated_tensors(approximations.values()))}
    for done, mix in enumerate(MIXES):
        _notify(progress, "choosing a refit", done, len(MIXES))
        if mix == MIXES[-1] and min(divergences, key=divergences.__getitem__) == MIXES[-2]:
            break  # the last mix lies between the first and none, and the one below the first is the best
        tensors = updated_tensors(_refitted(approximations, calibration, trial_model, trial_model.rest, mix).values())
        divergences[mix] = divergence_with(trial_model, tensors)
    return min(divergences, key=divergences.__getitem__)


def _refitted(
    first: Mapping[str, Approximation],
    calibration: Calibration,
    trial_model: TrialModel,
    batches: Sequence[Batch],
    mix: float,
) -> dict[str, Approximation]:
    """Refit all matrices, in the order in which they run, to the inputs that the compressed model gives them."""
    by_unit: dict[str, list[str]] = {}
    for name, approximation in first.items():
        by_unit.setdefault(approximation.weighted.unit.name, []).append(name)
    approximations = dict(first)

    def fit_unit(unit: WeightGroup, moments: CrossMoments) -> Mapping[str, Tensor]:
        for name in by_unit[unit.name]:
            weighted = first[name].weighted
            goal = shifted_target(weighted.weight, moments, weighted.span, mix=mix, centred=weighted.centred)
            approximations[name] = Approximation(
                weighted=weighted,
                mpo=refitted(first[name].mpo, goal.weight, goal.second, weighted.metric.outputs),
                mean_before=goal.mean_before,
                mean_after=goal.mean_after,
            )
        return updated_tensors(approximations[name] for name in by_unit[unit.name])

    units = [unit for unit in calibration.units if unit.name in by_unit]
    refit(trial_model, units, batches, updated_tensors(first.values()), fit_unit)
    return approximations


def _stored_dtypes(
    approximations: Mapping[str, Approximation],
    job: CompressionJob,
    trial_model: TrialModel | None,
    progress: Progress | None,
) -> dict[str, str]:
    """Return the dtype of the stored cores of every matrix: float16 in place of an int8 that costs too much."""
    dtypes = {
        name: job.dtype or approximation.weighted.matrix.members[0].dtype
        for name, approximation in approximations.items()
    }
    if job.dtype != INT8:
        return dtypes
    unrounded = (
        divergence_with(trial_model, updated_tensors(approximations.values())) if trial_model is not None else 0.0
    )
    free = ROUNDING_FREE * trial_model.scale if trial_model is not None else 0.0
    error_limit = job.target.error_limit
    for done, (name, approximation) in enumerate(approximations.items()):
        _notify(progress, "rounding", done, len(approximations))
        coarse = dataclasses.replace(approximation, mpo=rounded(approximation.mpo, torch_dtype(INT8)))
        error, coarse_error = (
            approximation.weighted.error(candidate.mpo.to(torch.float32).to_matrix())
            for candidate in (approximation, coarse)
        )
        before, after = error**2, coarse_error**2
        if trial_model is not None:
            before = unrounded
            after = divergence_with(trial_model, updated_tensors({**approximations, name: coarse}.values()))
        # Written so that a NaN counts as too much.
        exceeds = error_limit is not None and not coarse_error <= error_limit
        if exceeds or not after - before <= max(ROUNDING_COST * before, free):
            dtypes[name] = INSTEAD_OF_INT8
    return dtypes


def _store(
    approximation: Approximation,
    choice: BondChoice,
    job: CompressionJob,
    squared_norm: float,
    *,
    dtype: str,
    sensitivity: float | None,
) -> tuple[CompressedMatrix, Approximation | None]:
    """Round cores to their dtype, measure their error, and write them to the spool.

    Returns:
        The finished matrix, and the approximation with the rounded cores; None if the matrix stays dense.
    """
    stored = quantise(approximation.mpo) if dtype == INT8 else approximation.mpo.to(torch_dtype(dtype))
    mpo = restore(stored) if isinstance(stored, QuantisedMPO) else stored
    weight = FiniteMatrix(entries=read_matrix(choice.matrix, job.checkpoint), squared_norm=squared_norm)
    error = measured_error(weight, mpo)
    reason = reason_to_keep_dense(choice.matrix, mpo, error, dtype)
    if reason:
        dense = dense_report(choice.layer, choice.kind, choice.matrix, squared_norm, reason)
        return CompressedMatrix(report=dense), None
    weighted = approximation.weighted
    report = compressed_report(
        choice,
        squared_norm,
        mpo,
        error,
        dtype,
        weighted_error=weighted.error(mpo.to(torch.float32).to_matrix()),
        sensitivity=sensitivity,
        corrected_bias=weighted.unit.bias if weighted.bias is not None else "",
    )
    return spool_matrix(report, stored, job.spool), dataclasses.replace(approximation, mpo=mpo)


def _biases(approximations: Sequence[Approximation], job: CompressionJob) -> dict[str, Tensor]:
    """Return the corrected biases, in the dtypes of the checkpoint."""
    members = {name for approximation in approximations for name in approximation.weighted.matrix.member_names}
    return {
        name: tensor.to(torch_dtype(job.checkpoint.tensors[name].dtype))
        for name, tensor in updated_tensors(approximations).items()
        if name not in members
    }


def _dense_tensors(matrices: Iterable[CompressedMatrix], job: CompressionJob) -> dict[str, Tensor]:
    """Return the dense weights of compressed matrices, in the shapes of the checkpoint."""
    tensors: dict[str, Tensor] = {}
    for matrix in matrices:
        mpo = matrix.mpo(job.spool)
        if mpo is not None:
            tensors |= split_members(mpo.to_matrix(precise=True), matrix.report)
    return tensors


def _calibration_report(
    calibration: Calibration, survey: CheckpointSurvey, weighted: Mapping[str, WeightedMatrix], mix: float
) -> CalibrationReport:
    """Return the calibration section of the report, without the divergence of the outputs."""
    uncalibrated = {
        matrix.name: calibration.uncalibrated.get(matrix.members[0].name, NOT_SEEN)
        for layer in survey.layers
        for matrix in layer.forms[-1]
        if matrix.name not in weighted
    }
    return CalibrationReport(
        kind=calibration.kind,
        measure=calibration.measure,
        kind_from=calibration.kind_from,
        samples=calibration.samples,
        held_out_samples=0,
        divergence=None,
        unrelated_divergence=None,
        agreement=None,
        refit_mix=mix,
        uncalibrated=uncalibrated,
    )


def _with_divergence(
    report: CalibrationReport, trial_model: TrialModel, tensors: Mapping[str, Tensor]
) -> CalibrationReport:
    """Add the divergence of the outputs of the compressed model, on inputs that nothing was fitted to."""
    with trial_model.holding(tensors):
        comparison = trial_model.compared(trial_model.held_out)
    return dataclasses.replace(
        report,
        held_out_samples=trial_model.batches.held_out_samples,
        divergence=comparison.divergence,
        unrelated_divergence=trial_model.unrelated(trial_model.held_out),
        agreement=comparison.agreement,
    )


def _notify(progress: Progress | None, step: str, done: int, total: int) -> None:
    if progress is not None:
        progress(step, done, total)

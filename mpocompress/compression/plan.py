"""Predict parameters and errors of a checkpoint for several targets."""

from __future__ import annotations

import dataclasses
import math

from mpocompress.calibration.calibrate import calibration_for
from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.calibration_file import check_calibration_file, write_calibration
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.build_report import checkpoint_report, no_fewer_bytes, target_outcome, untouched_reports
from mpocompress.compression.options import PlanOptions
from mpocompress.compression.sensitivity import planned_divergence, weighted_survey
from mpocompress.compression.survey import CheckpointSurvey, survey_checkpoint
from mpocompress.errors import TargetError
from mpocompress.parallel import available_cores
from mpocompress.planning.bond_choice import BondChoice, choose_bonds
from mpocompress.planning.targets import TruncationTarget
from mpocompress.reports.plan import PlannedMatrix, PlannedTarget, PlanReport
from mpocompress.text import StrPath
from mpocompress.user.model import resolve_model
from mpocompress.user.options import with_keywords


@with_keywords(PlanOptions)
def plan(source: StrPath, options: PlanOptions) -> PlanReport:
    """Predict parameters and errors of a checkpoint for several targets; nothing is written.

    Args:
        source: the checkpoint.
        options: the fields of `PlanOptions`.

    Returns:
        The untouched checkpoint, and the predictions for every target. Every matrix is factorised once per site shape,
        for all targets.

    Raises:
        CheckpointError: the source cannot be read, or nothing in it can be compressed.
        SelectionError: a glob that matches nothing.
        ModelError: the model cannot be built, or does not fit the checkpoint.
        CalibrationError: the calibration batches cannot be loaded, or the model does not accept them.
        SitesError: an unknown site shape.
        TargetError: a value out of range.
    """
    calibration_file, dtype = options.save_calibration, options.dtype_name
    targets = [truncation.target for truncation in options.truncations]
    if calibration_file is not None:
        check_calibration_file(calibration_file, overwrite=False, others=(source,))
    model, notes = resolve_model(options.model) if options.calibration is not None else (options.model, ())
    divergences: list[float | None] = [None] * len(targets)
    with open_checkpoint(source, key=options.key, allow_pickle=options.allow_pickle) as checkpoint:
        calibration = None
        if options.calibration is not None:
            calibration = calibration_for(options.calibration, model, checkpoint, options.progress)
        survey = survey_checkpoint(
            checkpoint,
            selection=options.selection,
            model=model,
            sites=options.sites,
            targets=targets,
            jobs=options.jobs or available_cores(),
            progress=options.progress,
        )
        if calibration is not None:
            measure = calibration_file is not None or any(target.is_budget for target in targets)
            survey, weighted = weighted_survey(
                survey, checkpoint, calibration, measure=measure, progress=options.progress
            )
            divergences = [planned_divergence(survey, weighted, calibration, target) for target in targets]
            if calibration_file is not None:
                write_calibration(calibration, calibration_file)
            notes = (*notes, *calibration.notes)
            if any(divergence is not None for divergence in divergences):
                notes = (*notes, _divergence_note(calibration))
    notes = (*notes, _dtype_note(dtype)) if dtype is not None else notes
    return PlanReport(
        checkpoint=checkpoint_report(survey, untouched_reports(survey), notes=notes),
        choices=tuple(
            planned_target(survey, target, dtype, divergence)
            for target, divergence in zip(targets, divergences, strict=True)
        ),
    )


def planned_target(
    survey: CheckpointSurvey, target: TruncationTarget, dtype: str | None = None, divergence: float | None = None
) -> PlannedTarget:
    """Predict parameters and errors of a checkpoint for one target.

    Args:
        survey: the survey of the checkpoint.
        target: the target.
        dtype: dtype of the stored cores; None for that of the weight.
        divergence: divergence of the outputs from the original ones; None if unknown.

    Returns:
        The prediction; for a target that cannot be met, `problem` says why.
    """
    eligible = survey.parameters - survey.other_parameters
    try:
        choices = choose_bonds(survey.layers, survey.curves, target, survey.other_parameters)
    except TargetError as error:
        return PlannedTarget(
            target=target_outcome(target, (), None)[0],
            problem=f"{error.found}; {error.why}",
            unmet=(),
            parameters=survey.parameters,
            eligible_parameters_after=eligible,
            relative_error=0.0,
            worst_relative_error=0.0,
            matrices=(),
        )
    matrices = tuple(_planned_matrix(_as_stored(choice, dtype)) for choice in choices)
    eligible_after = sum(matrix.parameters for matrix in matrices)
    parameters = survey.other_parameters + eligible_after
    norms = [survey.curves[choice.matrix.name].squared_norm for choice in choices]
    squared_error = sum(matrix.relative_error**2 * norm for matrix, norm in zip(matrices, norms, strict=True))
    outcome, unmet = target_outcome(target, matrices, parameters)
    return PlannedTarget(
        target=outcome,
        problem="",
        unmet=(*survey.unmet, *unmet),
        parameters=parameters,
        eligible_parameters_after=eligible_after,
        relative_error=math.sqrt(squared_error / sum(norms)) if sum(norms) else 0.0,
        worst_relative_error=max((matrix.relative_error for matrix in matrices), default=0.0),
        matrices=matrices,
        divergence=divergence,
    )


def _as_stored(choice: BondChoice, dtype: str | None) -> BondChoice:
    """Return the choice, or that of keeping the matrix dense if its cores have no fewer bytes."""
    if dtype is None or choice.sites is None:
        return choice
    reason = no_fewer_bytes(choice.matrix, choice.parameters, choice.bonds, dtype)
    if not reason:
        return choice
    dense = choice.matrix.dense_parameters
    return dataclasses.replace(choice, sites=None, bonds=(), parameters=dense, relative_error=0.0, reason=reason)


def _planned_matrix(choice: BondChoice) -> PlannedMatrix:
    return PlannedMatrix(
        name=choice.matrix.name,
        members=choice.matrix.member_names,
        shape=choice.matrix.shape,
        row_dims=choice.sites.row_dims if choice.sites else (),
        col_dims=choice.sites.col_dims if choice.sites else (),
        anti_aligned=choice.sites.anti_aligned if choice.sites else False,
        bonds=choice.bonds,
        dense_parameters=choice.matrix.dense_parameters,
        parameters=choice.parameters,
        relative_error=choice.relative_error,
        reason=choice.reason,
    )


def _divergence_note(calibration: Calibration) -> str:
    how = (
        "measured on calibration inputs, before any refit"
        if calibration.trial_model is not None
        else "the sum of the sensitivities"
    )
    return f"Divergence is {how}: {calibration.measure} ({calibration.kind}, since {calibration.kind_from})."


def _dtype_note(dtype: str) -> str:
    return f"sizes are those of cores in {dtype}; errors do not include the rounding, which is measured later"

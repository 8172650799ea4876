"""What a range of targets would make of a checkpoint."""

from __future__ import annotations

import dataclasses
import math

from mpocompress.calibration.calibrate import calibration_for
from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.file import check_calibration_file, write_calibration
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.options import PlanOptions
from mpocompress.compression.reporting import _target, _unmet, checkpoint_report, no_fewer_bytes, untouched_reports
from mpocompress.compression.sensitivity import planned_divergence, weigh_all
from mpocompress.compression.survey import Surveyed, survey_checkpoint
from mpocompress.errors import TargetError
from mpocompress.jobs import available_cores
from mpocompress.planning.plan import MatrixPlan, make_plan
from mpocompress.planning.target import Truncation
from mpocompress.reports.plan import PlannedMatrix, PlannedTarget, PlanReport
from mpocompress.text import StrPath
from mpocompress.user.model import resolve_model
from mpocompress.user.options import with_keywords


def planned_target(
    found: Surveyed, truncation: Truncation, dtype: str | None = None, divergence: float | None = None
) -> PlannedTarget:
    """What one target would give.

    Args:
        found: the surveyed checkpoint.
        truncation: the target.
        dtype: dtype that the cores would be stored in; None for that of the weight.
        divergence: of the outputs from the original ones, where it is known.

    Returns:
        The prediction; a target that cannot be met says why in `problem`.
    """
    eligible = found.parameters - found.other_parameters
    try:
        made = make_plan(found.layers, found.surveys, truncation, found.other_parameters)
    except TargetError as error:
        return PlannedTarget(
            target=_target(truncation, (), None),
            problem=f"{error.found}; {error.why}",
            unmet=(),
            parameters=found.parameters,
            eligible_parameters_after=eligible,
            relative_error=0.0,
            worst_relative_error=0.0,
            matrices=(),
        )
    matrices = tuple(_planned_matrix(_as_stored(entry, dtype)) for entry in made.matrices)
    eligible_after = sum(entry.parameters for entry in matrices)
    parameters = found.other_parameters + eligible_after
    norms = [found.surveys[entry.matrix.name].squared_norm for entry in made.matrices]
    missed = sum(entry.relative_error**2 * norm for entry, norm in zip(matrices, norms, strict=True))
    target = _target(truncation, matrices, parameters)
    return PlannedTarget(
        target=target,
        problem="",
        unmet=(*found.unmet, *_unmet(target, matrices)),
        parameters=parameters,
        eligible_parameters_after=eligible_after,
        relative_error=math.sqrt(missed / sum(norms)) if sum(norms) else 0.0,
        worst_relative_error=max((entry.relative_error for entry in matrices), default=0.0),
        matrices=matrices,
        divergence=divergence,
    )


def _as_stored(entry: MatrixPlan, dtype: str | None) -> MatrixPlan:
    """The plan of a matrix, or of keeping it dense where its cores would take no fewer bytes."""
    if dtype is None or entry.sites is None:
        return entry
    reason = no_fewer_bytes(entry.matrix, entry.parameters, entry.bonds, dtype)
    if not reason:
        return entry
    dense = entry.matrix.dense_parameters
    return dataclasses.replace(entry, sites=None, bonds=(), parameters=dense, relative_error=0.0, reason=reason)


def _planned_matrix(entry: MatrixPlan) -> PlannedMatrix:
    return PlannedMatrix(
        name=entry.matrix.name,
        members=tuple(member.name for member in entry.matrix.members),
        shape=entry.matrix.shape,
        row_dims=entry.sites.row_dims if entry.sites else (),
        col_dims=entry.sites.col_dims if entry.sites else (),
        anti_aligned=entry.sites.anti_aligned if entry.sites else False,
        bonds=entry.bonds,
        dense_parameters=entry.matrix.dense_parameters,
        parameters=entry.parameters,
        relative_error=entry.relative_error,
        reason=entry.reason,
    )


@with_keywords(PlanOptions)
def plan(source: StrPath, options: PlanOptions) -> PlanReport:
    """Predict what a range of targets would make of a checkpoint; nothing is written.

    Args:
        source: the checkpoint.
        options: the fields of `PlanOptions`.

    Returns:
        The checkpoint as it is, and parameters and predicted errors for every target. All come from one factorisation a
        matrix and site shape.

    Raises:
        CheckpointError: the source cannot be read, or holds nothing to compress.
        SelectionError: a pattern that matches nothing.
        ModelError: the model cannot be built, or is another one.
        CalibrationError: calibration inputs cannot be made, or the model does not take them.
        SitesError: a site shape choice that means nothing.
        TargetError: a dtype that is none of the five, or jobs below 1.
    """
    calibration_file, truncations, dtype = options.save_calibration, options.truncations, options.dtype_name
    if calibration_file is not None:
        check_calibration_file(calibration_file, overwrite=False, others=(source,))
    model, notes = resolve_model(options.model) if options.calibration is not None else (options.model, ())
    divergences: list[float | None] = [None] * len(truncations)
    with open_checkpoint(source, key=options.key, allow_pickle=options.allow_pickle) as checkpoint:
        calibration = None
        if options.calibration is not None:
            calibration = calibration_for(options.calibration, model, checkpoint, options.progress)
        surveyed = survey_checkpoint(
            checkpoint,
            selection=options.selection,
            model=model,
            sites=options.sites,
            truncations=truncations,
            jobs=options.jobs or available_cores(),
            progress=options.progress,
        )
        if calibration is not None:
            measure = calibration_file is not None or any(truncation.is_budget for truncation in truncations)
            surveyed, weighed = weigh_all(surveyed, checkpoint, calibration, measure=measure, progress=options.progress)
            divergences = [planned_divergence(surveyed, weighed, calibration, truncation) for truncation in truncations]
            if calibration_file is not None:
                write_calibration(calibration, calibration_file)
            is_predicted = any(divergence is not None for divergence in divergences)
            notes = (*notes, *calibration.notes, *((_measured(calibration),) if is_predicted else ()))
    return PlanReport(
        checkpoint=checkpoint_report(
            surveyed,
            untouched_reports(surveyed),
            notes=(*notes, *((_rounded(dtype),) if dtype is not None else ())),
        ),
        choices=tuple(
            planned_target(surveyed, truncation, dtype, divergence)
            for truncation, divergence in zip(truncations, divergences, strict=True)
        ),
    )


def _measured(calibration: Calibration) -> str:
    """What the divergences of a plan are."""
    how = (
        "measured on calibration inputs, before any refit"
        if calibration.rig is not None
        else "the sum of what each matrix costs alone"
    )
    return f"Divergence is {how}: {calibration.measure} ({calibration.kind}, since {calibration.said})."


def _rounded(dtype: str) -> str:
    return f"counted for cores in {dtype}; what rounding to it adds to the errors is measured when they are made"

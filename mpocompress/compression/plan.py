"""What a range of targets would make of a checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from mpocompress.calibration import (
    Calibration,
    CalibrationSource,
    calibration_for,
    check_calibration_file,
    write_calibration,
)
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.job import check_dtype, chosen_jobs
from mpocompress.compression.reporting import _target, _unmet, checkpoint_report, no_fewer_bytes, untouched_reports
from mpocompress.compression.sensitivity import planned_divergence, weigh_all
from mpocompress.compression.survey import Surveyed, survey_checkpoint
from mpocompress.errors import TargetError
from mpocompress.jobs import Progress
from mpocompress.layers.selection import Selection
from mpocompress.mpo.sites import SitesChoice, check_choice
from mpocompress.planning.plan import PLAN_TARGETS, MatrixPlan, make_plan
from mpocompress.planning.target import Truncation
from mpocompress.reports.plan import PlannedMatrix, PlannedTarget, PlanReport
from mpocompress.text import StrPath
from mpocompress.user.model import UserModel, runnable


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


def plan(
    source: StrPath,
    *,
    truncations: Sequence[Truncation] = PLAN_TARGETS,
    sites: SitesChoice = "auto",
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    model: UserModel | None = None,
    calibration: CalibrationSource | None = None,
    save_calibration: StrPath | None = None,
    dtype: str | None = None,
    key: str | None = None,
    allow_pickle: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> PlanReport:
    """What a range of targets would make of a checkpoint, without writing anything.

    Args:
        source: the checkpoint.
        truncations: the targets; by default bonds from 4 to 128 and fractions from 1/2 to 1/32.
        sites: a site shape choice for every matrix.
        selection: which layers, and in what form.
        model: your own model, to tell layers by their classes: a module, `file.py:name` or `package.module:name` of one
            or of what builds it (that is imported and run), or module path -> class.
        calibration: inputs that the model is run with, or what was measured with them, as in `compress`.
        save_calibration: where to keep what was measured.
        dtype: dtype that the cores would be stored in; by default that of the weight.
        key: where the state dict sits in a nested checkpoint.
        allow_pickle: load a pickle in the ordinary way, which runs the code it names.
        jobs: matrices worked on at the same time; by default the number of cores.
        progress: told how far the work is.

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
    check_dtype(dtype)
    check_choice(sites)
    if save_calibration is not None:
        check_calibration_file(save_calibration, overwrite=False, others=(source,))
    model, ran = runnable(model) if calibration is not None else (model, ())
    divergences: list[float | None] = [None] * len(truncations)
    with open_checkpoint(source, key=key, allow_pickle=allow_pickle) as checkpoint:
        known = calibration_for(calibration, model, checkpoint, progress) if calibration is not None else None
        found = survey_checkpoint(
            checkpoint,
            selection=selection,
            model=model,
            sites=sites,
            truncations=truncations,
            jobs=chosen_jobs(jobs),
            progress=progress,
        )
        if known is not None:
            measure = save_calibration is not None or any(one.is_budget for one in truncations)
            found, weighed = weigh_all(found, checkpoint, known, measure=measure, progress=progress)
            divergences = [planned_divergence(found, weighed, known, one) for one in truncations]
            if save_calibration is not None:
                write_calibration(known, save_calibration)
            told = (_measured(known),) if any(one is not None for one in divergences) else ()
            ran = (*ran, *known.notes, *told)
    return PlanReport(
        checkpoint=checkpoint_report(
            found, untouched_reports(found), notes=(*ran, *((_rounded(dtype),) if dtype is not None else ()))
        ),
        choices=tuple(
            planned_target(found, truncation, dtype, divergence)
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

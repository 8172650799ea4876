"""Build the report of a compression: one entry per matrix, and the sums over the checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from mpocompress._version import __version__
from mpocompress.compression.job import Outcome
from mpocompress.compression.survey import CheckpointSurvey
from mpocompress.layers.specs import MatrixSpec
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import stored_size_bytes
from mpocompress.planning.bond_choice import BondChoice
from mpocompress.planning.targets import Matrices, TruncationTarget
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.compression import Report, Target, Totals
from mpocompress.reports.matrix import MatrixReport


def compressed_report(
    choice: BondChoice,
    squared_norm: float,
    mpo: MPO,
    error: float,
    dtype: str,
    *,
    discarded_weights: tuple[float, ...] = (),
    rounding_weight: float = 0.0,
    weighted_error: float | None = None,
    sensitivity: float | None = None,
    corrected_bias: str = "",
) -> MatrixReport:
    """Return the report of a matrix that is stored as cores.

    Args:
        choice: the choice of its site shape and bonds.
        squared_norm: squared Frobenius norm of the dense matrix.
        mpo: the cores as they are read back from the file.
        error: relative error measured on them.
        dtype: dtype they are stored in.
        discarded_weights: weight discarded at each cut; empty for cores that were fitted to calibration data.
        rounding_weight: squared error that storing the cores in `dtype` added.
        weighted_error: the error weighted by the calibration; None without calibration data.
        sensitivity: divergence of the model's outputs if this matrix alone is compressed; None if not measured.
        corrected_bias: the bias that corrects the mean error; empty if none does.
    """
    return dataclasses.replace(
        dense_report(choice.layer, choice.kind, choice.matrix, squared_norm),
        row_dims=mpo.sites.row_dims,
        col_dims=mpo.sites.col_dims,
        anti_aligned=mpo.sites.anti_aligned,
        bonds=mpo.bonds,
        parameters=mpo.parameters,
        relative_error=error,
        discarded_weights=discarded_weights,
        rounding_weight=rounding_weight,
        dtype=dtype,
        weighted_error=weighted_error,
        sensitivity=sensitivity,
        corrected_bias=corrected_bias,
    )


def dense_report(layer: str, kind: str, matrix: MatrixSpec, squared_norm: float, reason: str = "") -> MatrixReport:
    """Return the report of a matrix that stays dense.

    Args:
        layer: path of the module.
        kind: kind of the layer.
        matrix: its tensors.
        squared_norm: squared Frobenius norm.
        reason: why it stays dense.
    """
    return MatrixReport(
        name=matrix.name,
        layer=layer,
        kind=kind,
        members=matrix.member_names,
        member_columns=matrix.member_columns,
        shape=matrix.shape,
        row_dims=(),
        col_dims=(),
        anti_aligned=False,
        bonds=(),
        dense_parameters=matrix.dense_parameters,
        parameters=matrix.dense_parameters,
        relative_error=0.0,
        squared_norm=squared_norm,
        discarded_weights=(),
        rounding_weight=0.0,
        source_dtype=matrix.members[0].dtype,
        dtype=matrix.members[0].dtype,
        reason=reason,
        kind_from=matrix.kind_from,
        transposed=matrix.transposed,
    )


def reason_to_keep_dense(
    matrix: MatrixSpec,
    mpo: MPO,
    error: float,
    stored: str,
    *,
    error_limit: float | None = None,
    is_lost: bool = False,
) -> str:
    """Return why finished cores are not stored; empty if they are.

    Args:
        matrix: the matrix.
        mpo: its cores as they are read back from the file.
        error: relative error measured on them.
        stored: dtype they would be stored in.
        error_limit: the largest relative error of the target, or None.
        is_lost: whether rounding to the dtype adds more error than it may.
    """
    if is_lost or not math.isfinite(error):
        return f"its cores cannot be stored as {stored} without losing more than the truncation"
    if reason := no_fewer_bytes(matrix, mpo.parameters, mpo.bonds, stored):
        return reason
    if error_limit is not None and (error > error_limit or mpo.parameters >= matrix.dense_parameters):
        return f"no smaller MPO in {stored} keeps a relative error of {error_limit:.4g}"
    return ""


def no_fewer_bytes(matrix: MatrixSpec, parameters: int, bonds: Sequence[int], stored: str) -> str:
    """Return why cores with as many bytes as the weight are not stored; empty if they have fewer.

    Args:
        matrix: the matrix.
        parameters: entries of the cores.
        bonds: the bond of every cut.
        stored: dtype of the cores.
    """
    dense = stored_size_bytes(matrix.dense_parameters, (), matrix.members[0].dtype)
    if stored_size_bytes(parameters, bonds, stored) < dense:
        return ""
    return f"in {stored} its cores take no fewer bytes than the dense weight in {matrix.members[0].dtype}"


def untouched_reports(survey: CheckpointSurvey) -> tuple[MatrixReport, ...]:
    """Return a dense report for every eligible matrix, in the first form of its layer.

    Args:
        survey: the survey of the checkpoint.
    """
    return tuple(
        dense_report(layer.name, layer.kind, matrix, survey.curves[matrix.name].squared_norm)
        for layer in survey.layers
        for matrix in layer.forms[0]
    )


def checkpoint_report(
    survey: CheckpointSurvey,
    matrices: tuple[MatrixReport, ...],
    *,
    target: TruncationTarget | None = None,
    notes: tuple[str, ...] = (),
    calibration: CalibrationReport | None = None,
) -> Report:
    """Return the report of a whole checkpoint, with its sums checked.

    Args:
        survey: the survey of the checkpoint.
        matrices: the report of every eligible matrix.
        target: the target; None for an untouched checkpoint.
        notes: notes beside those of the survey.
        calibration: the calibration section; None without calibration data.

    Raises:
        ReportError: figures that contradict each other.
    """
    before = sum(matrix.dense_parameters for matrix in matrices)
    after = sum(matrix.parameters for matrix in matrices)
    saved = sum(
        stored_size_bytes(matrix.dense_parameters, (), matrix.source_dtype)
        - stored_size_bytes(matrix.parameters, matrix.bonds, matrix.dtype)
        for matrix in matrices
    )
    parameters = survey.parameters - before + after
    outcome, unmet = target_outcome(target, matrices, parameters) if target is not None else (None, ())
    report = Report(
        tool_version=__version__,
        source=survey.source,
        target=outcome,
        matrices=matrices,
        skipped=survey.skipped,
        aliases=survey.aliases,
        totals=Totals(
            dense_parameters=survey.parameters,
            parameters=parameters,
            eligible_parameters=before,
            eligible_parameters_after=after,
            size_bytes_before=survey.size_bytes,
            size_bytes_after=survey.size_bytes - saved,
            file_size_bytes_before=survey.source.file_size_bytes,
            file_size_bytes_after=None,
        ),
        unmet=(*survey.unmet, *unmet),
        notes=(*survey.notes, *notes),
        calibration=calibration,
    )
    report.check()
    return report


def target_outcome(
    target: TruncationTarget, matrices: Matrices, parameters: int | None
) -> tuple[Target, tuple[str, ...]]:
    """Return the target with the figure that was achieved, and what was not met, a sentence each.

    Args:
        target: the target.
        matrices: every eligible matrix, finished or planned.
        parameters: parameters of the whole model; None if the target cannot be met.
    """
    achieved = target.achieved(matrices, parameters)
    outcome = Target(kind=target.kind, requested=target.value, achieved=achieved, bond_by_layer=dict(target.by_layer))
    return outcome, target.unmet(achieved, matrices)


def outcome_report(outcome: Outcome, *, target: TruncationTarget, notes: tuple[str, ...] = ()) -> Report:
    """Return the report of a compression, with its sums checked.

    Args:
        outcome: the result of the compression.
        target: the target.
        notes: notes beside those of the survey.

    Raises:
        ReportError: figures that contradict each other.
    """
    matrices = tuple(matrix.report for matrix in outcome.matrices)
    corrected = {matrix.corrected_bias for matrix in matrices}
    skipped = (
        dataclasses.replace(tensor, reason="a bias, corrected by the mean error of its layer")
        if tensor.name in corrected
        else tensor
        for tensor in outcome.survey.skipped
    )
    return checkpoint_report(
        dataclasses.replace(outcome.survey, skipped=tuple(skipped)),
        matrices,
        target=target,
        notes=(*notes, *outcome.notes),
        calibration=outcome.calibration,
    )

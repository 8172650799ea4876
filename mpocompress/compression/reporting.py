"""Figures into reports: what was done or planned, matrix by matrix, and the sums over the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mpocompress._version import __version__
from mpocompress.compression.job import Outcome
from mpocompress.compression.survey import Surveyed
from mpocompress.layers.specs import MatrixSpec
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import stored_size_bytes
from mpocompress.mpo.tt_svd import Decomposition
from mpocompress.planning.plan import MatrixPlan
from mpocompress.planning.target import Truncation
from mpocompress.reports.calibration import CalibrationReport
from mpocompress.reports.compression import MatrixReport, Report, Target, Totals
from mpocompress.reports.plan import PlannedMatrix


def compressed_report(entry: MatrixPlan, result: Decomposition, mpo: MPO, error: float, dtype: str) -> MatrixReport:
    """The report of a matrix that is stored as cores.

    Args:
        entry: its plan.
        result: the sweep.
        mpo: the cores as they come back from the file.
        error: relative error measured on them.
        dtype: dtype they are stored in.

    Returns:
        The report.
    """
    return dataclasses.replace(
        dense_report(entry.layer, entry.kind, entry.matrix, result.squared_norm),
        row_dims=mpo.sites.row_dims,
        col_dims=mpo.sites.col_dims,
        anti_aligned=mpo.sites.anti_aligned,
        bonds=mpo.bonds,
        parameters=mpo.parameters,
        relative_error=error,
        discarded_weights=result.discarded_weights,
        rounding_weight=error**2 * result.squared_norm - sum(result.discarded_weights),
        dtype=dtype,
    )


def weighted_report(
    entry: MatrixPlan, squared_norm: float, mpo: MPO, error: float, dtype: str, *, weighted_error: float, bias: str
) -> MatrixReport:
    """The report of a matrix whose cores were found with calibration inputs.

    Args:
        entry: its plan.
        squared_norm: squared Frobenius norm of the dense matrix.
        mpo: the cores as they come back from the file.
        error: relative error measured on them.
        dtype: dtype they are stored in.
        weighted_error: the same in the metric of the calibration inputs.
        bias: the bias that takes up the mean of the error; empty where none does.

    Returns:
        The report.
    """
    return dataclasses.replace(
        dense_report(entry.layer, entry.kind, entry.matrix, squared_norm),
        row_dims=mpo.sites.row_dims,
        col_dims=mpo.sites.col_dims,
        anti_aligned=mpo.sites.anti_aligned,
        bonds=mpo.bonds,
        parameters=mpo.parameters,
        relative_error=error,
        dtype=dtype,
        weighted_error=weighted_error,
        corrected_bias=bias,
    )


def dense_report(layer: str, kind: str, matrix: MatrixSpec, squared_norm: float, reason: str = "") -> MatrixReport:
    """The report of a matrix that stays dense.

    Args:
        layer: path of the module.
        kind: kind of the layer.
        matrix: its tensors.
        squared_norm: squared Frobenius norm.
        reason: why it stays dense.

    Returns:
        The report.
    """
    return MatrixReport(
        name=matrix.name,
        layer=layer,
        kind=kind,
        members=tuple(member.name for member in matrix.members),
        member_columns=tuple(member.shape[1] for member in matrix.members),
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


def untouched_reports(found: Surveyed) -> tuple[MatrixReport, ...]:
    """Every eligible matrix as it is, in the first form of its layer.

    Args:
        found: the surveyed checkpoint.

    Returns:
        One dense report for every matrix.
    """
    return tuple(
        dense_report(layer.name, layer.kind, matrix, found.surveys[matrix.name].squared_norm)
        for layer in found.layers
        for matrix in layer.forms[0]
    )


def checkpoint_report(
    found: Surveyed,
    matrices: tuple[MatrixReport, ...],
    *,
    truncation: Truncation | None = None,
    notes: tuple[str, ...] = (),
    calibration: CalibrationReport | None = None,
) -> Report:
    """The report of a whole checkpoint, its sums checked.

    Args:
        found: the surveyed checkpoint.
        matrices: the report of every eligible matrix.
        truncation: the target; None for a checkpoint as it is.
        notes: what the reader should know beside what the survey noted.
        calibration: what the model's outputs lost; None without calibration inputs.

    Returns:
        The report.

    Raises:
        ReportError: figures that contradict each other.
    """
    infos = [info for info in found.tensors.values() if info.alias_of is None]
    before = sum(matrix.dense_parameters for matrix in matrices)
    after = sum(matrix.parameters for matrix in matrices)
    size = sum(info.size_bytes for info in infos)
    saved = sum(
        stored_size_bytes(m.dense_parameters, (), m.source_dtype) - stored_size_bytes(m.parameters, m.bonds, m.dtype)
        for m in matrices
    )
    parameters = found.parameters - before + after
    target = None if truncation is None else _target(truncation, matrices, parameters)
    report = Report(
        tool_version=__version__,
        source=found.source,
        target=target,
        matrices=matrices,
        skipped=found.skipped,
        aliases={name: info.alias_of for name, info in found.tensors.items() if info.alias_of is not None},
        totals=Totals(
            dense_parameters=found.parameters,
            parameters=parameters,
            eligible_parameters=before,
            eligible_parameters_after=after,
            size_bytes_before=size,
            size_bytes_after=size - saved,
            file_size_bytes_before=found.source.file_size_bytes,
            file_size_bytes_after=None,
        ),
        unmet=found.unmet if target is None else (*found.unmet, *_unmet(target, matrices)),
        notes=(*found.notes, *notes),
        calibration=calibration,
    )
    report.check()
    return report


def no_fewer_bytes(matrix: MatrixSpec, parameters: int, bonds: Sequence[int], stored: str) -> str:
    """Why cores that take as many bytes as the weight are not kept.

    Args:
        matrix: the matrix.
        parameters: entries of the cores.
        bonds: the bond of every cut.
        stored: dtype of the cores.

    Returns:
        The reason; empty where they take fewer.
    """
    dense = stored_size_bytes(matrix.dense_parameters, (), matrix.members[0].dtype)
    if stored_size_bytes(parameters, bonds, stored) < dense:
        return ""
    return f"in {stored} its cores take no fewer bytes than the dense weight in {matrix.members[0].dtype}"


def _target(
    truncation: Truncation, matrices: Sequence[MatrixReport] | Sequence[PlannedMatrix], parameters: int | None
) -> Target:
    """What was asked, and what came out; `parameters` are those of the whole model, None when it cannot be done."""
    errors = [_error(matrix) for matrix in matrices if matrix.bonds]
    bonds = [bond for matrix in matrices for bond in matrix.bonds]
    achieved: float | None = None
    if truncation.kind == "bond":
        achieved = max(bonds, default=None)
    elif truncation.kind == "energy":
        achieved = 1 - max(errors) ** 2 if errors else None
    elif truncation.kind == "max_error":
        achieved = max(errors, default=None)
    elif truncation.kind == "max_params":
        achieved = parameters
    elif matrices:
        achieved = sum(m.parameters for m in matrices) / sum(m.dense_parameters for m in matrices)
    return Target(
        kind=truncation.kind, asked=truncation.asked, achieved=achieved, by_layer=dict(truncation.bond_by_layer)
    )


def _error(matrix: MatrixReport | PlannedMatrix) -> float:
    """The error that a target is about: as the model feels it, where that is known."""
    felt = matrix.weighted_error if isinstance(matrix, MatrixReport) else None
    return matrix.relative_error if felt is None else felt


def _unmet(target: Target, matrices: Sequence[MatrixReport] | Sequence[PlannedMatrix]) -> tuple[str, ...]:
    """What was asked for and does not hold."""
    if target.kind in ("keep", "max_params"):
        if (target.achieved or 0.0) > (target.asked or 0.0):
            return ("The budget is exceeded, because matrices that were to be compressed had to be kept dense.",)
        return ()
    if not any(matrix.bonds for matrix in matrices):
        return ("No matrix could be made smaller under this target; all were kept dense.",)
    return ()


def outcome_report(came: Outcome, *, truncation: Truncation, notes: tuple[str, ...] = ()) -> Report:
    """The report of what came of a compression.

    Args:
        came: what came of it.
        truncation: the target.
        notes: what the reader should know beside what the survey noted.

    Returns:
        The report, its sums checked. A bias that took up a mean error is not called untouched.

    Raises:
        ReportError: figures that contradict each other.
    """
    matrices = tuple(one.report for one in came.done)
    found = came.surveyed
    moved = {one.corrected_bias for one in matrices}
    skipped = (
        dataclasses.replace(one, reason="a bias, moved by the mean error of its layer") if one.name in moved else one
        for one in found.skipped
    )
    return checkpoint_report(
        dataclasses.replace(found, skipped=tuple(skipped)),
        matrices,
        truncation=truncation,
        notes=(*notes, *came.notes),
        calibration=came.calibration,
    )

"""Origin of an MPO weight, stored in the weight, so that its model can be saved again."""

from __future__ import annotations

from dataclasses import dataclass

from mpocompress.nn import MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport

_ATTRIBUTE = "_record"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """Origin of a weight; copies, pickles and larger models that contain the weight keep it.

    Args:
        report: the report of the compression.
        matrix: the matrix in the report.
        place: name of the matrix, or of another parameter that is tied to it.
    """

    report: Report
    matrix: MatrixReport
    place: str


def remember(weight: MPOWeight, record: Record) -> MPOWeight:
    """Store the origin of a weight in it.

    Args:
        weight: the weight.
        record: its origin.

    Returns:
        The same weight.
    """
    # no object of this class: a pickled model names public classes only
    weight.__dict__[_ATTRIBUTE] = (record.report, record.matrix.name, record.place)
    return weight


def record_of(weight: MPOWeight) -> Record | None:
    """Return the origin of a weight; None if it is not from a file or a compressed model.

    Args:
        weight: the weight.

    Example:
        >>> import torch
        >>> from mpocompress.mpo.mpo import MPO
        >>> record_of(MPOWeight(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)])))
    """
    stored = weight.__dict__.get(_ATTRIBUTE)
    if stored is None:
        return None
    report, name, place = stored
    matrix = next(matrix for matrix in report.matrices if matrix.name == name)
    return Record(report=report, matrix=matrix, place=place)

"""Record on an MPO weight the compression that produced it, so that its model can be saved again."""

from __future__ import annotations

from dataclasses import dataclass

from mpocompress.nn import MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport

_ATTRIBUTE = "provenance"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Provenance:
    """The origin of an MPO weight. It is kept in copies and pickles, and when the weight moves to another model.

    Args:
        report: the report of the compression.
        matrix: the matrix in it.
        stored_name: the name its cores would have in the file if it was not tied to that matrix; otherwise the same.
    """

    report: Report
    matrix: MatrixReport
    stored_name: str


def set_provenance(weight: MPOWeight, provenance: Provenance) -> MPOWeight:
    """Set the provenance of a weight, and return the weight.

    Args:
        weight: the weight.
        provenance: its origin.
    """
    # Not the object itself: a pickled model names public classes only.
    weight.__dict__[_ATTRIBUTE] = (provenance.report, provenance.matrix.name, provenance.stored_name)
    return weight


def provenance_of(weight: MPOWeight) -> Provenance | None:
    """Return the provenance of a weight; None if it did not come from a compressed file or model.

    Args:
        weight: the weight.

    Example:
        >>> import torch
        >>> from mpocompress.mpo.mpo import MPO
        >>> provenance_of(MPOWeight(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)])))
    """
    stored = weight.__dict__.get(_ATTRIBUTE)
    if stored is None:
        return None
    report, matrix_name, stored_name = stored
    matrix = next(matrix for matrix in report.matrices if matrix.name == matrix_name)
    return Provenance(report=report, matrix=matrix, stored_name=stored_name)

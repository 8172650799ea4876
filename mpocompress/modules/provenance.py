"""What a weight made of cores knows of the file it came from, so that its model can be saved again."""

from __future__ import annotations

from dataclasses import dataclass

from mpocompress.nn import MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport

_ATTRIBUTE = "record"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """Where a weight came from. It goes wherever the weight goes: into copies, pickles and larger models.

    Args:
        report: what was done to the checkpoint.
        matrix: the matrix in it.
        place: what its cores would be filed under if it was not tied to that matrix; otherwise the same name.
    """

    report: Report
    matrix: MatrixReport
    place: str

    def __deepcopy__(self, memo: object) -> Record:
        """Return itself: nothing in it changes."""
        return self


def remember(weight: MPOWeight, record: Record) -> MPOWeight:
    """Put a record on a weight that was just made.

    Args:
        weight: the weight.
        record: where it came from.

    Returns:
        The same weight.
    """
    weight.__dict__[_ATTRIBUTE] = record
    return weight


def record_of(weight: MPOWeight) -> Record | None:
    """The record of a weight.

    Args:
        weight: the weight.

    Returns:
        The record; None for one that did not come from a file or a compressed model.

    Example:
        >>> import torch
        >>> from mpocompress.mpo.mpo import MPO
        >>> record_of(MPOWeight(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)])))
    """
    found = weight.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, Record) else None

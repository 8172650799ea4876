"""The report of `plan`: a checkpoint as it is, and what each of several targets would make of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mpocompress.reports.compression import VERSION, Report, Target
from mpocompress.reports.documents import fields_of

PLAN_FORMAT = "mpocompress-plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMatrix:
    """What one target would make of one matrix.

    Args:
        name: what its cores would be filed under, or the tensor that stays dense.
        members: original tensor names.
        shape: (rows, columns).
        row_dims: row dim of each site; empty when dense.
        col_dims: column dim of each site; empty when dense.
        anti_aligned: whether the last site's row digit is the slowest.
        bonds: bond of each cut; empty when dense.
        dense_parameters: entries of the dense matrix.
        parameters: entries of the cores, or of the dense matrix where it is kept.
        relative_error: predicted relative Frobenius error; exact for two sites, an upper bound for more. With a
            calibration, of low-rank products of matrices that were seen to run, as the model feels it.
        reason: why it stays dense.
    """

    name: str
    members: tuple[str, ...]
    shape: tuple[int, int]
    row_dims: tuple[int, ...]
    col_dims: tuple[int, ...]
    anti_aligned: bool
    bonds: tuple[int, ...]
    dense_parameters: int
    parameters: int
    relative_error: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTarget:
    """What one target would give.

    Args:
        target: asked, and what would be achieved; achieved is None when the target cannot be met.
        problem: why it cannot be met; empty when it can.
        unmet: what of it would not be met, a sentence each.
        parameters: of the whole model.
        eligible_parameters_after: of the eligible matrices.
        relative_error: over all eligible matrices together.
        worst_relative_error: of the worst single matrix.
        matrices: every eligible matrix.
        divergence: of the model's outputs from the original ones, before any refit; None where it is not known.
    """

    target: Target
    problem: str
    unmet: tuple[str, ...]
    parameters: int
    eligible_parameters_after: int
    relative_error: float
    worst_relative_error: float
    matrices: tuple[PlannedMatrix, ...]
    divergence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """A checkpoint as it is, and the choices.

    Args:
        checkpoint: the report of the untouched checkpoint; every eligible matrix is dense.
        choices: one for every target.
    """

    checkpoint: Report
    choices: tuple[PlannedTarget, ...]

    def to_json(self, *, indent: int | None = None) -> str:
        """The plan as a JSON document: the fields of a report, and `choices`.

        Its schema is `mpocompress/reports/schema/plan-1.json`.

        Args:
            indent: spaces to indent by, or None for one line.

        Returns:
            The document.
        """
        document = {
            "format": PLAN_FORMAT,
            "version": VERSION,
            **fields_of(self.checkpoint),
            "choices": [fields_of(choice) for choice in self.choices],
        }
        return json.dumps(document, indent=indent, allow_nan=False)

"""The report of `plan`: an uncompressed checkpoint, and the predicted result of several targets."""

from dataclasses import dataclass
from typing import ClassVar

from mpocompress.reports.compression import Report, Target
from mpocompress.reports.json_documents import Count, Document, NonNegative, Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMatrix:
    """The predicted result of one target for one matrix.

    Args:
        name: prefix of the names of its cores, or the name of the dense tensor.
        members: names of the original tensors.
        shape: rows and columns.
        row_dims: row dim of each site; empty if dense.
        col_dims: column dim of each site; empty if dense.
        anti_aligned: whether the row index counts with the digit of the last site slowest.
        bonds: bond of each cut between two sites; empty if dense.
        dense_parameters: number of entries of the dense matrix.
        parameters: number of entries of the cores; of the dense matrix if it is kept dense.
        relative_error: predicted relative Frobenius error; exact for two sites, an upper bound for more. With
            calibration inputs, low-rank products have the weighted error instead.
        reason: why the matrix is kept dense; empty if it is compressed.
    """

    name: str
    members: tuple[str, ...]
    shape: tuple[Positive, Positive]
    row_dims: tuple[Positive, ...]
    col_dims: tuple[Positive, ...]
    anti_aligned: bool
    bonds: tuple[Positive, ...]
    dense_parameters: Positive
    parameters: Positive
    relative_error: NonNegative
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTarget:
    """The predicted result of one target.

    Args:
        target: the target; `achieved` is None if it cannot be met.
        problem: why the target cannot be met; empty if it can.
        unmet: requests that would not be met, as sentences.
        parameters: number of parameters of the whole model.
        eligible_parameters_after: number of parameters of all matrices.
        relative_error: relative error over all matrices together.
        worst_relative_error: largest relative error of a matrix.
        matrices: every matrix.
        divergence: predicted divergence of the outputs before any refit, on the inputs that decisions are measured on;
            for a calibration from a file, the sum of the sensitivities. None if it is not known.
    """

    target: Target
    problem: str
    unmet: tuple[str, ...]
    parameters: Count
    eligible_parameters_after: Count
    relative_error: NonNegative
    worst_relative_error: NonNegative
    matrices: tuple[PlannedMatrix, ...]
    divergence: NonNegative | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanReport(Document):
    """The predicted results of several targets for a checkpoint.

    Args:
        checkpoint: the report of the uncompressed checkpoint; every matrix is dense and `target` is None.
        choices: the result of each target.
    """

    __module__ = "mpocompress"
    FORMAT: ClassVar[str] = "mpocompress-plan"

    checkpoint: Report
    choices: tuple[PlannedTarget, ...]

    def __repr__(self) -> str:
        """Return the file and the number of targets."""
        possible = sum(not choice.problem for choice in self.choices)
        return f"<PlanReport: {self.checkpoint.source.file}, {possible} of {len(self.choices)} targets possible>"

    def check(self) -> None:
        """Check that the figures of the checkpoint add up.

        Raises:
            ReportError: they contradict each other.
        """
        self.checkpoint.check()

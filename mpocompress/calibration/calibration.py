"""A calibration: the metrics of a checkpoint's weights and the sensitivities of its matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpocompress.calibration.hooks import WeightGroup
from mpocompress.calibration.trial_model import TrialModel
from mpocompress.mpo.metric import Metric
from mpocompress.reports.calibration import OutputKind
from mpocompress.reports.json_documents import NonNegative, Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The sensitivity of a matrix at one bond.

    Args:
        matrix: name of the matrix.
        sites: its site shape, such as `low rank`.
        bond: limit of every bond.
        divergence: divergence of the outputs from the original ones if only this matrix is truncated.
    """

    matrix: str
    sites: str
    bond: Positive
    divergence: NonNegative

    @property
    def key(self) -> tuple[str, str, int]:
        """Key in `Calibration.points`."""
        return self.matrix, self.sites, self.bond


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Measurements on calibration inputs.

    Args:
        sha256: digest of the checkpoint.
        units: weights that are multiplied at once, in the order of execution.
        metrics: unit name -> metric.
        uncalibrated: name of a tensor -> why it was not measured.
        kind: kind of the model's outputs.
        measure: name of the divergence.
        kind_from: source of the kind, as text.
        samples: number of samples that the moments were collected on.
        points: sensitivities measured so far; more are added when they are needed.
        trial_model: the model and its inputs; None if the calibration was read from a file.
        notes: notes for the reader.
    """

    __module__ = "mpocompress"

    sha256: str
    units: tuple[WeightGroup, ...]
    metrics: Mapping[str, Metric]
    uncalibrated: Mapping[str, str]
    kind: OutputKind
    measure: str
    kind_from: str
    samples: int
    points: dict[tuple[str, str, int], Point] = field(default_factory=dict)
    trial_model: TrialModel | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return what was measured in place of the moments."""
        return f"Calibration(kind={self.kind!r}, samples={self.samples}, weights={len(self.units)})"

    def unit_of(self, members: tuple[str, ...]) -> tuple[WeightGroup, tuple[int, int]] | None:
        """Return the unit of some tensors and their columns in it; None if they were not measured.

        Args:
            members: names of the tensors in the checkpoint, in order.
        """
        spans = ((unit, unit.span(members)) for unit in self.units)
        return next(((unit, span) for unit, span in spans if span is not None), None)

"""What calibration inputs say about a checkpoint: made by running the model, kept in a file, used for many budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpocompress.calibration.hooks import WeightGroup
from mpocompress.calibration.rig import Rig
from mpocompress.mpo.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What the model's output loses when one matrix alone is truncated.

    Args:
        matrix: the name of the matrix.
        sites: its site shape, as `low rank`.
        bond: cap of every bond.
        divergence: of the outputs from the original ones.
    """

    matrix: str
    sites: str
    bond: int
    divergence: float

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is looked up by."""
        return self.matrix, self.sites, self.bond


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What was measured with calibration inputs.

    Args:
        sha256: of the weights it was measured with.
        units: what was watched, in the order in which it ran.
        metrics: unit name -> metric.
        left_out: name of a tensor -> why it was not measured.
        kind: what the outputs of the model are.
        measure: how outputs are compared, in words.
        said: from where the kind is known.
        samples: how many samples were learnt from.
        points: sensitivities, as far as they were measured; more are added where they are asked for.
        rig: the model and its inputs; None where it came from a file.
        notes: what the reader should know.
    """

    sha256: str
    units: tuple[WeightGroup, ...]
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str]
    kind: str
    measure: str
    said: str
    samples: int
    points: dict[tuple[str, str, int], Point] = field(default_factory=dict)
    rig: Rig | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return what was measured in place of the moments."""
        return f"Calibration(kind={self.kind!r}, samples={self.samples}, weights={len(self.units)})"

    def unit_of(self, members: tuple[str, ...]) -> tuple[WeightGroup, tuple[int, int]] | None:
        """The unit that some tensors belong to.

        Args:
            members: their names in the checkpoint, in order.

        Returns:
            The unit and their columns in it; None where they were not measured.
        """
        found = ((unit, unit.span(members)) for unit in self.units)
        return next(((unit, span) for unit, span in found if span is not None), None)

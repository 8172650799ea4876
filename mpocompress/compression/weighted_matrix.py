"""Matrices with what calibration inputs say of them: errors, the best cores for a shape, what tensors become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.layers.specs import MatrixSpec
from mpocompress.mpo.fitting import STEPS, fit
from mpocompress.mpo.metric import Metric, OutputWeights
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, low_rank
from mpocompress.mpo.tt_svd import factorise
from mpocompress.mpo.weighted_svd import WeightedProduct, weighted_product

QUICK_STEPS = 20
"""Steps of a fit that is only there to be compared."""
CLEARLY = 0.98
"""Share of the weighted error of a low-rank product that another shape has to be under, since it runs slower."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighed:
    """A matrix with its metric.

    Args:
        matrix: its tensors.
        weight: itself, shape (rows, cols).
        unit: what it is multiplied in.
        span: its columns there.
        metric: of its inputs and outputs.
        bias: the bias that takes up mean errors; None where none can.
    """

    matrix: MatrixSpec
    weight: Tensor
    unit: WeightGroup
    span: tuple[int, int]
    metric: Metric
    bias: Tensor | None

    @property
    def centred(self) -> bool:
        """Whether a bias takes up mean errors."""
        return self.bias is not None

    def product(self) -> WeightedProduct:
        """The matrix split by worth; not kept, since it is larger than the matrix."""
        return weighted_product(self.weight, self.metric.inputs(centred=self.centred), self.metric.outputs)

    def error(self, dense: Tensor) -> float:
        """The weighted error of what stands for the matrix, relative to the matrix."""
        return self.metric.relative_error(self.weight, dense, centred=self.centred)

    def fitted(self, sites: Sites, bonds: Sequence[int], steps: int = STEPS) -> MPO:
        """The best cores that are found for a site shape and bonds.

        Args:
            sites: the site shape.
            bonds: a bond for every cut.
            steps: the most steps of a fit, where there is no closed form.

        Returns:
            The MPO, in float32 or float64.
        """
        if sites == low_rank(*self.matrix.shape):
            return self.product().mpo(bonds[0])
        start = factorise(self.weight, sites, bonds=bonds).mpo
        return fit(start, self.weight, self.metric.inputs(centred=self.centred), self.metric.outputs, steps)

    def members(self, dense: Tensor) -> dict[str, Tensor]:
        """What the tensors of the matrix become.

        Args:
            dense: what stands for the matrix.

        Returns:
            Name in the checkpoint -> values, in the shape that it has there.
        """
        parts = torch.split(dense, [member.shape[1] for member in self.matrix.members], dim=1)
        return {
            member.name: part.T if member.transposed else part
            for member, part in zip(self.matrix.members, parts, strict=True)
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stand:
    """What stands for a matrix, and between which inputs its mean error lies.

    Args:
        weighed: the matrix.
        mpo: its cores.
        before: mean of the inputs that the original bias belongs to, shape (cols,).
        after: mean of the inputs that the new bias belongs to, shape (cols,).
    """

    weighed: Weighed
    mpo: MPO
    before: Tensor
    after: Tensor


def standing(weighed: Weighed, mpo: MPO) -> Stand:
    """Cores that stand for a matrix on the inputs of the original model.

    Args:
        weighed: the matrix.
        mpo: its cores.

    Returns:
        Both.
    """
    return Stand(weighed=weighed, mpo=mpo, before=weighed.metric.mean, after=weighed.metric.mean)


def values_of(stands: Iterable[Stand]) -> dict[str, Tensor]:
    """What the tensors of a model become when cores stand for its matrices.

    Args:
        stands: what stands for each.

    Returns:
        Name in the checkpoint -> values, in the shape that it has there. Biases take up the mean errors of all matrices
        that they are added to.
    """
    found: dict[str, Tensor] = {}
    for stand in stands:
        weighed = stand.weighed
        dense = stand.mpo.to(torch.promote_types(stand.mpo.cores[0].dtype, torch.float32)).to_matrix()
        found |= weighed.members(dense)
        if weighed.bias is not None:
            shift = weighed.weight.double() @ stand.before - dense.double() @ stand.after
            name = weighed.unit.bias
            found[name] = found.get(name, weighed.bias.double()) + shift
    return found


def refitted_to(start: MPO, weight: Tensor, second: Tensor, outputs: OutputWeights) -> MPO:
    """Cores of the same site shape and bonds fitted to another matrix, or in another metric.

    Args:
        start: cores to start from, where there is no closed form.
        weight: the matrix, shape (rows, cols).
        second: second moment of its inputs.
        outputs: how errors of the outputs are felt.

    Returns:
        The MPO.
    """
    if start.sites == low_rank(*weight.shape):
        return weighted_product(weight, second, outputs).mpo(start.bonds[0])
    return fit(start, weight, second, outputs)


def weigh(
    matrix: MatrixSpec, weight: Tensor, calibration: Calibration, bias_of: Callable[[str], Tensor | None]
) -> Weighed | None:
    """Bring a matrix and its metric together.

    Args:
        matrix: its tensors.
        weight: itself.
        calibration: what was measured.
        bias_of: gives a bias by name; None where it cannot be changed.

    Returns:
        Both; None where it was not measured.
    """
    found = calibration.unit_of(tuple(member.name for member in matrix.members))
    if found is None:
        return None
    unit, span = found
    return Weighed(
        matrix=matrix,
        weight=weight,
        unit=unit,
        span=span,
        metric=calibration.metrics[unit.name].columns(*span),
        bias=bias_of(unit.bias) if unit.bias else None,
    )


def chosen_shape(
    weighed: Weighed, sites: Sites, bonds: Sequence[int], candidates: Sequence[Sites]
) -> tuple[Sites, tuple[int, ...]]:
    """The site shape with the least weighted error at the parameters that a matrix got.

    Args:
        weighed: the matrix.
        sites: the shape it has.
        bonds: its bonds.
        candidates: other shapes, fastest first.

    Returns:
        A shape and its bonds; the one it has, unless another is clearly better.
    """
    limit = sites.parameters(bonds)
    best = (CLEARLY * weighed.error(weighed.fitted(sites, bonds).to_matrix()), sites, tuple(bonds))
    for shape in candidates:
        if shape == sites:
            continue
        cap = _largest_cap(shape, limit)
        if cap:
            error = weighed.error(weighed.fitted(shape, shape.capped(cap), QUICK_STEPS).to_matrix())
            best = min(best, (error, shape, shape.capped(cap)), key=lambda one: one[0])
    return best[1], best[2]


def _largest_cap(sites: Sites, limit: int) -> int:
    caps = range(1, max(sites.max_bonds) + 1)
    return max((cap for cap in caps if sites.parameters(sites.capped(cap)) <= limit), default=0)

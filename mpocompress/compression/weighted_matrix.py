"""A weight matrix with its calibration metric: weighted error, best cores, updated tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.layers.specs import MatrixSpec, split_members
from mpocompress.mpo.fitting import STEPS, fit
from mpocompress.mpo.metric import Metric, OutputWeights
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, low_rank
from mpocompress.mpo.tt_svd import factorise
from mpocompress.mpo.weighted_svd import WeightedProduct, weighted_product

QUICK_STEPS = 20
"""Steps of a fit whose result is only compared."""
CLEARLY = 0.98
"""A site shape is taken in place of low rank only below this share of its weighted error, because it runs slower."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedMatrix:
    """A weight matrix with its metric.

    Args:
        matrix: its tensors.
        weight: the matrix, shape (rows, cols).
        unit: the calibrated product it is a part of.
        span: first column of the matrix in the unit, and the one after its last.
        metric: the metric of its inputs and outputs.
        bias: the bias that can correct mean errors; None if there is none.
    """

    matrix: MatrixSpec
    weight: Tensor
    unit: WeightGroup
    span: tuple[int, int]
    metric: Metric
    bias: Tensor | None

    @property
    def centred(self) -> bool:
        """Whether a bias corrects mean errors, so that only the variation of the inputs counts."""
        return self.bias is not None

    def product(self) -> WeightedProduct:
        """Compute the weighted SVD; not cached, since it is larger than the matrix."""
        return weighted_product(self.weight, self.metric.inputs(centred=self.centred), self.metric.outputs)

    def error(self, dense: Tensor) -> float:
        """Return the weighted error of an approximation of the matrix, relative to the matrix."""
        return self.metric.relative_error(self.weight, dense, centred=self.centred)

    def fitted(self, sites: Sites, bonds: Sequence[int], steps: int = STEPS) -> MPO:
        """Compute the cores with the least weighted error in a site shape.

        Args:
            sites: the site shape.
            bonds: one bond per cut.
            steps: the maximum number of steps of a fit, used where there is no closed form.

        Returns:
            The MPO, in float32 or float64.
        """
        if sites == low_rank(*self.matrix.shape):
            return self.product().mpo(bonds[0])
        start = factorise(self.weight, sites, bonds=bonds).mpo
        return fit(start, self.weight, self.metric.inputs(centred=self.centred), self.metric.outputs, steps)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Approximation:
    """An approximation of a matrix, with the input means that its bias correction needs.

    Args:
        weighted: the matrix.
        mpo: its cores.
        mean_before: mean of the inputs in the original model, shape (cols,).
        mean_after: mean of the inputs in the compressed model, shape (cols,).
    """

    weighted: WeightedMatrix
    mpo: MPO
    mean_before: Tensor
    mean_after: Tensor


def approximate(weighted: WeightedMatrix, mpo: MPO) -> Approximation:
    """Return an approximation for the inputs of the original model.

    Args:
        weighted: the matrix.
        mpo: its cores.
    """
    mean = weighted.metric.mean
    return Approximation(weighted=weighted, mpo=mpo, mean_before=mean, mean_after=mean)


def updated_tensors(approximations: Iterable[Approximation]) -> dict[str, Tensor]:
    """Return the new values of the tensors of a model whose matrices are approximated.

    Args:
        approximations: at most one per matrix.

    Returns:
        Name in the checkpoint -> dense weight, in the shape that it has there, or bias. Every bias corrects the mean
        errors of all matrices that it is added to.
    """
    tensors: dict[str, Tensor] = {}
    for approximation in approximations:
        weighted = approximation.weighted
        dense = approximation.mpo.to_matrix(precise=True)
        tensors |= split_members(dense, weighted.matrix)
        if weighted.bias is not None:
            shift = weighted.weight.double() @ approximation.mean_before - dense.double() @ approximation.mean_after
            name = weighted.unit.bias
            tensors[name] = tensors.get(name, weighted.bias.double()) + shift
    return tensors


def refitted(start: MPO, weight: Tensor, second: Tensor, outputs: OutputWeights) -> MPO:
    """Fit cores of the same site shape and bonds to another matrix, or in another metric.

    Args:
        start: the cores to start from, where there is no closed form.
        weight: the matrix, shape (rows, cols).
        second: second moment of its inputs.
        outputs: weights of the output errors.
    """
    if start.sites == low_rank(*weight.shape):
        return weighted_product(weight, second, outputs).mpo(start.bonds[0])
    return fit(start, weight, second, outputs)


def with_metric(
    matrix: MatrixSpec, weight: Tensor, calibration: Calibration, bias_of: Callable[[str], Tensor | None]
) -> WeightedMatrix | None:
    """Return a matrix with its metric; None if the calibration does not have one.

    Args:
        matrix: its tensors.
        weight: the matrix.
        calibration: the calibration.
        bias_of: returns a bias by name; None if it cannot be changed.
    """
    unit_and_span = calibration.unit_of(matrix.member_names)
    if unit_and_span is None:
        return None
    unit, span = unit_and_span
    return WeightedMatrix(
        matrix=matrix,
        weight=weight,
        unit=unit,
        span=span,
        metric=calibration.metrics[unit.name].columns(*span),
        bias=bias_of(unit.bias) if unit.bias else None,
    )


def best_shape(
    weighted: WeightedMatrix, sites: Sites, bonds: Sequence[int], candidates: Sequence[Sites]
) -> tuple[Sites, tuple[int, ...]]:
    """Return the site shape, and its bonds, with the least weighted error at the same number of parameters.

    Args:
        weighted: the matrix.
        sites: the planned site shape.
        bonds: the planned bonds.
        candidates: other shapes, fastest first.

    Returns:
        The planned shape, unless another one is clearly better.
    """
    limit = sites.parameters(bonds)
    best = (CLEARLY * weighted.error(weighted.fitted(sites, bonds).to_matrix()), sites, tuple(bonds))
    for shape in candidates:
        if shape == sites:
            continue
        cap = _largest_cap(shape, limit)
        if cap:
            error = weighted.error(weighted.fitted(shape, shape.capped(cap), QUICK_STEPS).to_matrix())
            best = min(best, (error, shape, shape.capped(cap)), key=lambda candidate: candidate[0])
    return best[1], best[2]


def _largest_cap(sites: Sites, limit: int) -> int:
    caps = range(1, max(sites.max_bonds) + 1)
    return max((cap for cap in caps if sites.parameters(sites.capped(cap)) <= limit), default=0)

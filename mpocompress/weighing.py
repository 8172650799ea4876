"""Every matrix weighed with calibration inputs: what it costs and what the model's output loses, for every bond."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.calibration.calibration import Calibration, Point
from mpocompress.calibration.rig import Rig
from mpocompress.calibration.watching import Unit
from mpocompress.checkpoint import Checkpoint
from mpocompress.contraction import to_dtype
from mpocompress.curve import Curve
from mpocompress.decomposition import factorise
from mpocompress.errors import TargetError
from mpocompress.fitting import STEPS, fit
from mpocompress.jobs import Progress
from mpocompress.layers import MatrixSpec
from mpocompress.metric import Metric, OutputWeights
from mpocompress.mpo import MPO
from mpocompress.planning import Survey, make_plan
from mpocompress.report import BEYOND
from mpocompress.sites import Sites, low_rank
from mpocompress.survey import Surveyed, read_matrix
from mpocompress.truncation import Truncation
from mpocompress.weighted import WeightedProduct, weighted_product

FRACTIONS = (1 / 1.5, 1 / 2.5, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""Fractions of a matrix's parameters at which its sensitivity is measured."""
QUICK_STEPS = 20
"""Steps of a fit that is only there to be compared."""
SMALLEST_LOSS = 1e-12


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
    unit: Unit
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


def survey_with_data(weighed: Weighed, survey: Survey, calibration: Calibration, *, measure: bool) -> Survey:
    """What is known of a matrix, errors and losses being those that the model feels.

    Args:
        weighed: the matrix.
        survey: what is known of it without data.
        calibration: what was measured; sensitivities are added to it.
        measure: whether the loss of the model's output is wanted.

    Returns:
        The survey: of the low-rank shape the exact weighted errors, where it is among the candidates; otherwise the
        plain ones.
    """
    if not survey.curves:
        return survey
    shape = low_rank(*weighed.matrix.shape)
    if all(curve.sites != shape for curve in survey.curves):
        curves = survey.curves
        total, product = weighed.product().total, None
    else:
        product = weighed.product()
        curves, total = (Curve(sites=shape, tails=(product.tails,)),), product.total
    if measure:
        curves = tuple(
            dataclasses.replace(curve, losses=_losses(curve, _points(weighed, curve, product, calibration), total))
            for curve in curves
        )
    return dataclasses.replace(survey, curves=curves)


def _points(
    weighed: Weighed, curve: Curve, product: WeightedProduct | None, calibration: Calibration
) -> Mapping[int, float]:
    """Bond -> divergence of the output with this matrix alone truncated."""
    wanted = {curve.cap_for_parameters(int(share * curve.dense_parameters)) for share in FRACTIONS} - {0}
    if calibration.rig is not None:
        for cap in sorted(wanted):
            key = (weighed.matrix.name, curve.sites.label, cap)
            if key not in calibration.points:
                mpo = (
                    product.mpo(cap)
                    if product is not None
                    else weighed.fitted(curve.sites, curve.sites.capped(cap), QUICK_STEPS)
                )
                found = divergence_with(calibration.rig, values_of([standing(weighed, mpo)]))
                calibration.points[key] = Point(matrix=key[0], sites=key[1], bond=cap, divergence=found)
    known = calibration.points.values()
    return {
        one.bond: one.divergence
        for one in known
        if one.matrix == weighed.matrix.name and one.sites == curve.sites.label
    }


def divergence_with(rig: Rig, values: Mapping[str, Tensor]) -> float:
    """How far the outputs for the tuning inputs are from the original ones with other values in the model.

    Args:
        rig: the model.
        values: name in the checkpoint -> values.

    Returns:
        The divergence.
    """
    with rig.holding(values):
        return rig.divergence(rig.tuning)


def _losses(curve: Curve, points: Mapping[int, float], total: float) -> NDArray[np.float64]:
    """The loss under every cap: measured ones, and between them in proportion to the squared error.

    Without any, the weighted square that is lost: to second order that is what the output loses.
    """
    _, squares = curve.table()
    errors = np.maximum(squares[0], SMALLEST_LOSS)
    usable = {cap: found for cap, found in points.items() if found < BEYOND and cap <= len(errors)}
    if not usable:
        scaled: NDArray[np.float64] = errors * total
        return scaled
    caps = np.array(sorted(usable, reverse=True))  # errors rise with falling bonds
    found = np.array([max(usable[cap], SMALLEST_LOSS) for cap in caps.tolist()])
    at = errors[caps - 1]
    ratios = np.interp(np.log(errors), np.log(at), np.log(found / at))
    losses: NDArray[np.float64] = errors * np.exp(ratios)
    return losses


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


CLEARLY = 0.98
"""Share of the weighted error of a low-rank product that another shape has to be under, since it runs slower."""


def _largest_cap(sites: Sites, limit: int) -> int:
    return max((cap for cap in _caps(sites) if sites.parameters(sites.capped(cap)) <= limit), default=0)


def _caps(sites: Sites) -> Iterator[int]:
    return iter(range(1, max(sites.max_bonds) + 1))


def weigh_all(
    surveyed: Surveyed,
    checkpoint: Checkpoint,
    calibration: Calibration,
    *,
    measure: bool,
    progress: Progress | None = None,
) -> tuple[Surveyed, dict[str, Weighed]]:
    """Weigh every matrix that was seen to run.

    Args:
        surveyed: what is known without data.
        checkpoint: where to read the matrices.
        calibration: what was measured; sensitivities are added to it.
        measure: whether the loss of the model's output is wanted.
        progress: told how far the work is.

    Returns:
        The survey, those matrices with the errors and losses that the model feels; and the matrices, by name.
    """
    infos = checkpoint.tensors
    shared = {info.alias_of for info in infos.values() if info.alias_of is not None}

    def bias_of(name: str) -> Tensor | None:
        info = infos.get(name)
        return None if info is None or info.alias_of is not None or name in shared else checkpoint.tensor(name)

    matrices = {matrix.name: matrix for layer in surveyed.layers for form in layer.forms for matrix in form}
    surveys, found = dict(surveyed.surveys), {}
    for done, (name, matrix) in enumerate(matrices.items()):
        if progress is not None:
            progress("measuring sensitivity", done, len(matrices))
        weight = read_matrix(matrix, checkpoint)
        weight = to_dtype(weight, torch.promote_types(weight.dtype, torch.float32))
        weighed = weigh(matrix, weight, calibration, bias_of)
        if weighed is not None:
            found[name] = weighed
            surveys[name] = survey_with_data(weighed, surveys[name], calibration, measure=measure)
    return dataclasses.replace(surveyed, surveys=surveys), found


def planned_divergence(
    surveyed: Surveyed, weighed: Mapping[str, Weighed], calibration: Calibration, truncation: Truncation
) -> float | None:
    """How far the outputs would be from the original ones under a target, before any refit.

    Args:
        surveyed: the weighed checkpoint.
        weighed: its matrices, by name.
        calibration: what was measured.
        truncation: the target.

    Returns:
        The divergence for the tuning inputs, or without a model the sum of what each matrix costs alone; None where
        neither is known, or the target cannot be met.
    """
    try:
        plan = make_plan(surveyed.layers, surveyed.surveys, truncation, surveyed.other_parameters)
    except TargetError:
        return None
    entries = [entry for entry in plan.matrices if entry.sites is not None and entry.matrix.name in weighed]
    if calibration.rig is not None:
        stands = [
            standing(weighed[name], weighed[name].fitted(entry.sites, entry.bonds, QUICK_STEPS))
            for entry in plan.matrices
            if entry.sites is not None and (name := entry.matrix.name) in weighed
        ]
        found = divergence_with(calibration.rig, values_of(stands))
        return found if math.isfinite(found) else None
    if not calibration.points:
        return None
    losses = []
    for entry in entries:
        curve = next(one for one in surveyed.surveys[entry.matrix.name].curves if one.sites == entry.sites)
        if not len(curve.losses):
            return None
        losses.append(float(curve.losses[min(max(entry.bonds), len(curve.losses)) - 1]))
    return sum(losses)

"""What the model's output loses by every matrix alone, measured for a few bonds, and so for every bond and target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.calibration.calibration import Calibration, Point
from mpocompress.calibration.rig import Rig
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.compression.survey import Surveyed, read_matrix
from mpocompress.compression.weighted_matrix import QUICK_STEPS, Weighed, standing, values_of, weigh
from mpocompress.errors import TargetError
from mpocompress.jobs import Progress
from mpocompress.mpo.memory import to_dtype
from mpocompress.mpo.sites import low_rank
from mpocompress.mpo.weighted_svd import WeightedProduct
from mpocompress.planning.curves import Curve
from mpocompress.planning.plan import Survey, make_plan
from mpocompress.planning.target import Truncation
from mpocompress.reports.calibration import BEYOND

FRACTIONS = (1 / 1.5, 1 / 2.5, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""Fractions of a matrix's parameters at which its sensitivity is measured."""
SMALLEST_LOSS = 1e-12


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
        return rig.divergence(rig.validation)


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

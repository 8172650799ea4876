"""Measure the divergence of the model's outputs if only one matrix is compressed, for several bonds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.calibration.calibration import Calibration, Point
from mpocompress.calibration.trial_model import TrialModel
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.compression.survey import CheckpointSurvey, read_matrix
from mpocompress.compression.weighted_matrix import (
    QUICK_STEPS,
    WeightedMatrix,
    approximate,
    updated_tensors,
    with_metric,
)
from mpocompress.errors import TargetError
from mpocompress.mpo.memory import to_dtype
from mpocompress.mpo.sites import low_rank
from mpocompress.mpo.weighted_svd import WeightedProduct
from mpocompress.parallel import Progress
from mpocompress.planning.bond_choice import choose_bonds
from mpocompress.planning.curves import ErrorCurve, MatrixCurves
from mpocompress.planning.targets import TruncationTarget
from mpocompress.reports.calibration import BEYOND

FRACTIONS = (1 / 1.5, 1 / 2.5, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""Fractions of the parameters of a matrix at which its sensitivity is measured."""
SMALLEST_LOSS = 1e-12


def weighted_survey(
    survey: CheckpointSurvey,
    checkpoint: Checkpoint,
    calibration: Calibration,
    *,
    measure: bool,
    progress: Progress | None = None,
) -> tuple[CheckpointSurvey, dict[str, WeightedMatrix]]:
    """Replace the errors in a survey by weighted ones, for every matrix that ran on the calibration inputs.

    Args:
        survey: the survey, without data.
        checkpoint: the checkpoint.
        calibration: the calibration; measured sensitivities are added to it.
        measure: whether to measure the losses of the model's outputs.
        progress: called with the progress of the work.

    Returns:
        The survey, with weighted errors, and losses if measured; and the matrices with their metrics, by name.
    """
    infos = checkpoint.tensors
    shared = set(checkpoint.aliases.values())

    def bias_of(name: str) -> Tensor | None:
        info = infos.get(name)
        return None if info is None or info.alias_of is not None or name in shared else checkpoint.tensor(name)

    matrices = {matrix.name: matrix for layer in survey.layers for form in layer.forms for matrix in form}
    curves, weighted_matrices = dict(survey.curves), {}
    for done, (name, matrix) in enumerate(matrices.items()):
        if progress is not None:
            progress("measuring sensitivity", done, len(matrices))
        weight = read_matrix(matrix, checkpoint)
        weight = to_dtype(weight, torch.promote_types(weight.dtype, torch.float32))
        weighted = with_metric(matrix, weight, calibration, bias_of)
        if weighted is not None:
            weighted_matrices[name] = weighted
            curves[name] = weighted_curves(weighted, curves[name], calibration, measure=measure)
    return dataclasses.replace(survey, curves=curves), weighted_matrices


def weighted_curves(
    weighted: WeightedMatrix, curves: MatrixCurves, calibration: Calibration, *, measure: bool
) -> MatrixCurves:
    """Return the error curves of a matrix in its metric, with losses of the model's outputs if measured.

    Args:
        weighted: the matrix.
        curves: its curves without data.
        calibration: the calibration; measured sensitivities are added to it.
        measure: whether to measure the losses of the model's outputs.

    Returns:
        The exact weighted errors in the low-rank shape, if it is a candidate; otherwise the curves without data.
    """
    if not curves.curves:
        return curves
    shape = low_rank(*weighted.matrix.shape)
    if all(curve.sites != shape for curve in curves.curves):
        candidates = curves.curves
        total, product = weighted.product().total, None
    else:
        product = weighted.product()
        candidates, total = (ErrorCurve(sites=shape, tails=(product.tails,)),), product.total
    if measure:
        candidates = tuple(
            dataclasses.replace(curve, losses=_losses(curve, _points(weighted, curve, product, calibration), total))
            for curve in candidates
        )
    return dataclasses.replace(curves, curves=candidates)


def _points(
    weighted: WeightedMatrix, curve: ErrorCurve, product: WeightedProduct | None, calibration: Calibration
) -> Mapping[int, float]:
    """Return the divergence of the outputs with this matrix alone truncated, by bond; measure missing ones."""
    name, label = weighted.matrix.name, curve.sites.label
    caps = {curve.cap_for_parameters(int(share * curve.dense_parameters)) for share in FRACTIONS} - {0}
    if calibration.trial_model is not None:
        for cap in sorted(caps):
            key = (name, label, cap)
            if key not in calibration.points:
                mpo = (
                    product.mpo(cap)
                    if product is not None
                    else weighted.fitted(curve.sites, curve.sites.capped(cap), QUICK_STEPS)
                )
                divergence = divergence_with(calibration.trial_model, updated_tensors([approximate(weighted, mpo)]))
                calibration.points[key] = Point(matrix=name, sites=label, bond=cap, divergence=divergence)
    points = calibration.points.values()
    return {point.bond: point.divergence for point in points if (point.matrix, point.sites) == (name, label)}


def divergence_with(trial_model: TrialModel, tensors: Mapping[str, Tensor]) -> float:
    """Return the divergence of the model's outputs from the original ones if some tensors have other values.

    Args:
        trial_model: the model.
        tensors: name in the checkpoint -> values.
    """
    with trial_model.holding(tensors):
        return trial_model.divergence(trial_model.validation)


def _losses(curve: ErrorCurve, points: Mapping[int, float], total: float) -> NDArray[np.float64]:
    """Return the loss under every cap: measured at some, interpolated in proportion to the squared error between them.

    Without measurements it is the discarded weighted square, which is the loss of the outputs to second order.
    """
    _, squares = curve.table()
    errors = np.maximum(squares[0], SMALLEST_LOSS)
    usable = {cap: divergence for cap, divergence in points.items() if divergence < BEYOND and cap <= len(errors)}
    if not usable:
        scaled: NDArray[np.float64] = errors * total
        return scaled
    caps = np.array(sorted(usable, reverse=True))  # errors rise as bonds fall
    divergences = np.array([max(usable[cap], SMALLEST_LOSS) for cap in caps.tolist()])
    at_caps = errors[caps - 1]
    ratios = np.interp(np.log(errors), np.log(at_caps), np.log(divergences / at_caps))
    losses: NDArray[np.float64] = errors * np.exp(ratios)
    return losses


def planned_divergence(
    survey: CheckpointSurvey,
    weighted_matrices: Mapping[str, WeightedMatrix],
    calibration: Calibration,
    target: TruncationTarget,
) -> float | None:
    """Predict the divergence of the outputs from the original ones under a target, before any refit.

    Args:
        survey: the weighted survey.
        weighted_matrices: the matrices with their metrics, by name.
        calibration: the calibration.
        target: the target.

    Returns:
        The divergence on the validation batches, or without a model the sum of the losses of each matrix alone; None if
        neither is known, or if the target cannot be met.
    """
    try:
        choices = choose_bonds(survey.layers, survey.curves, target, survey.other_parameters)
    except TargetError:
        return None
    choices = tuple(choice for choice in choices if choice.matrix.name in weighted_matrices)
    if calibration.trial_model is not None:
        approximations = []
        for choice in choices:
            if choice.sites is not None:
                weighted = weighted_matrices[choice.matrix.name]
                mpo = weighted.fitted(choice.sites, choice.bonds, QUICK_STEPS)
                approximations.append(approximate(weighted, mpo))
        divergence = divergence_with(calibration.trial_model, updated_tensors(approximations))
        return divergence if math.isfinite(divergence) else None
    if not calibration.points:
        return None
    losses = []
    for choice in choices:
        if choice.sites is None:
            continue
        candidates = survey.curves[choice.matrix.name].curves
        curve = next(curve for curve in candidates if curve.sites == choice.sites)
        if not len(curve.losses):
            return None
        losses.append(float(curve.losses[min(max(choice.bonds), len(curve.losses)) - 1]))
    return sum(losses)

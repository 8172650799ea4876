"""Matrices weighted with data: errors and losses for every bond, and what tensors become."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpocompress.calibration.calibrate import calibrate
from mpocompress.calibration.calibration import Calibration, Point
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.sensitivity import divergence_with, weighted_curves
from mpocompress.compression.survey import find_layers
from mpocompress.compression.weighted_matrix import (
    Approximation,
    WeightedMatrix,
    approximate,
    best_shape,
    refitted,
    updated_tensors,
    with_metric,
)
from mpocompress.layers.selection import Selection
from mpocompress.layers.specs import MatrixSpec, Member
from mpocompress.mpo.metric import Metric, OutputWeights
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, balanced, candidates, folded, low_rank
from mpocompress.planning.curves import ErrorCurve, MatrixCurves
from tests.calibration.trial_models import inputs, saved, seeded, two_layers
from tests.draw import random_matrix

EXACT = 1e-5
"""Errors of float32 matrices, measured in float64."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of two layers with its calibration and its matrices."""

    model: nn.Module
    calibration: Calibration
    matrices: dict[str, MatrixSpec]

    def weighted(self, name: str, *, bias: bool = True) -> WeightedMatrix:
        state = self.model.state_dict()
        matrix = with_metric(
            self.matrices[name], state[name], self.calibration, lambda bias_name: state[bias_name] if bias else None
        )
        assert matrix is not None
        return matrix


@pytest.fixture
def case(tmp_path: Path) -> Case:
    model = seeded(two_layers)
    source = saved(tmp_path, model)
    with open_checkpoint(source) as checkpoint:
        layers = find_layers(checkpoint, Selection(min_side=8)).layers
    matrices = {matrix.name: matrix for layer in layers for form in layer.forms for matrix in form}
    return Case(model=model, calibration=calibrate(source, inputs(), model), matrices=matrices)


def curves_of(weighted: WeightedMatrix, *shapes: object) -> MatrixCurves:
    sites = shapes or (low_rank(*weighted.matrix.shape),)
    curves = tuple(ErrorCurve(sites=shape, tails=(np.linspace(1.0, 0.0, 11),)) for shape in sites)  # type: ignore[arg-type]
    return MatrixCurves(squared_norm=1.0, curves=curves)


@pytest.mark.parametrize("bias", [False, True])
def test_errors_of_the_survey_are_those_of_the_cores(case: Case, bias: bool) -> None:
    weighted = case.weighted("2.weight", bias=bias)
    (curve,) = weighted_curves(weighted, curves_of(weighted), case.calibration, measure=False).curves

    assert len(curve.losses) == 0
    for bond in (1, 3, 7):
        dense = weighted.fitted(low_rank(10, 16), (bond,)).to_matrix()
        assert weighted.error(dense) == pytest.approx(curve.error((bond,)), abs=EXACT)


def test_losses_go_through_what_was_measured_and_fall(case: Case) -> None:
    weighted = case.weighted("2.weight")
    (curve,) = weighted_curves(weighted, curves_of(weighted), case.calibration, measure=True).curves
    points = [point for point in case.calibration.points.values() if point.matrix == "2.weight"]

    assert len(curve.losses) == curve.max_cap
    assert {point.bond for point in points} == {4, 2, 1}
    for point in points:
        stand = approximate(weighted, weighted.fitted(low_rank(10, 16), (point.bond,)))
        trial_model = case.calibration.trial_model
        assert trial_model is not None
        assert point.divergence == pytest.approx(divergence_with(trial_model, updated_tensors([stand])))
        assert curve.losses[point.bond - 1] == pytest.approx(max(point.divergence, 1e-12), rel=1e-9)
    assert all(np.isfinite(curve.losses))


def test_points_are_measured_once(case: Case) -> None:
    weighted = case.weighted("2.weight")
    weighted_curves(weighted, curves_of(weighted), case.calibration, measure=True)
    before = dict(case.calibration.points)
    without_model = dataclasses.replace(case.calibration, trial_model=None)
    (curve,) = weighted_curves(weighted, curves_of(weighted), without_model, measure=True).curves

    assert without_model.points == before
    assert len(curve.losses) == curve.max_cap


def test_without_points_the_loss_is_the_weighted_square(case: Case) -> None:
    weighted = case.weighted("2.weight")
    unmeasured = dataclasses.replace(case.calibration, trial_model=None, points={})
    (curve,) = weighted_curves(weighted, curves_of(weighted), unmeasured, measure=True).curves
    product = weighted.product()

    np.testing.assert_allclose(curve.losses, product.tails[1 : curve.max_cap + 1] * product.total, rtol=1e-9)


def test_points_beyond_comparison_say_nothing(case: Case) -> None:
    weighted = case.weighted("2.weight")
    points = [
        Point(matrix="2.weight", sites=low_rank(10, 16).label, bond=bond, divergence=divergence)
        for bond, divergence in ((1, 1e100), (3, 0.5), (99, 0.1))
    ]
    known = dataclasses.replace(case.calibration, trial_model=None, points={point.key: point for point in points})
    (curve,) = weighted_curves(weighted, curves_of(weighted), known, measure=True).curves

    assert curve.losses[2] == pytest.approx(0.5)
    assert curve.losses.max() < 1e9
    squares = curve.table()[1][0]
    np.testing.assert_allclose(curve.losses / curve.losses[2], squares / squares[2], rtol=1e-6)


def test_of_other_shapes_the_plain_errors_stay(case: Case) -> None:
    weighted = case.weighted("2.weight")
    survey = curves_of(weighted, balanced(10, 16, 2))
    (curve,) = weighted_curves(weighted, survey, case.calibration, measure=True).curves

    assert curve.sites == balanced(10, 16, 2)
    assert curve.tails is survey.curves[0].tails
    assert len(curve.losses) == curve.max_cap
    nothing = MatrixCurves(squared_norm=0.0, curves=(), problem="it holds NaN")
    assert weighted_curves(weighted, nothing, case.calibration, measure=True) is nothing


def test_a_bias_takes_up_the_mean_error(case: Case) -> None:
    weighted = case.weighted("0.weight")
    stand = approximate(weighted, weighted.fitted(low_rank(16, 12), (2,)))
    values = updated_tensors([stand])
    trial_model = case.calibration.trial_model
    assert trial_model is not None
    x = torch.cat([batch.inputs for batch in trial_model.rest if isinstance(batch.inputs, Tensor)]).double()
    state = case.model.state_dict()
    before = x @ state["0.weight"].double().T + state["0.bias"]
    after = x @ values["0.weight"].double().T + values["0.bias"]

    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=EXACT, atol=EXACT)
    assert set(values) == {"0.weight", "0.bias"}
    assert set(updated_tensors([approximate(case.weighted("0.weight", bias=False), stand.mpo)])) == {"0.weight"}


def test_two_matrices_of_one_bias_both_move_it(case: Case) -> None:
    weighted = case.weighted("0.weight")
    stand = approximate(weighted, weighted.fitted(low_rank(16, 12), (2,)))
    bias = case.model.state_dict()["0.bias"].double()
    once, twice = updated_tensors([stand])["0.bias"] - bias, updated_tensors([stand, stand])["0.bias"] - bias

    torch.testing.assert_close(twice, 2 * once)


def test_what_was_not_seen_is_not_weighed(case: Case) -> None:
    blind = dataclasses.replace(case.calibration, units=(), metrics={})

    assert with_metric(case.matrices["0.weight"], torch.zeros(16, 12), blind, lambda _: None) is None


def test_the_chosen_shape_has_no_more_parameters(case: Case) -> None:
    weighted = case.weighted("2.weight")
    start = low_rank(10, 16)
    sites, bonds = best_shape(weighted, start, (2,), candidates(10, 16, "auto"))

    assert sites.parameters(bonds) <= start.parameters((2,))


def structure(sites: Sites, seed: int) -> Tensor:
    """A matrix of norm 1 that an MPO of these two sites and bond 2 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    (row, more_rows), (col, more_cols) = sites.row_dims, sites.col_dims
    first = torch.randn(1, row, col, 2, generator=generator)
    second = torch.randn(2, more_rows, more_cols, 1, generator=generator)
    matrix = MPO(cores=(first, second), sites=sites).to_matrix()
    return matrix / float(torch.linalg.matrix_norm(matrix))


@pytest.mark.parametrize(("weight", "is_chosen"), [(0.9, False), (1.1, False), (1.14, True)])
def test_another_shape_is_chosen_if_its_error_is_lower_by_two_per_cent(weight: float, is_chosen: bool) -> None:
    """Of a sum of two structures each shape fits one, so that their weights set the ratio of the errors."""
    plain, fold = low_rank(16, 16), folded(16, 16, 4, 4)
    weighted = WeightedMatrix(
        matrix=MatrixSpec(name="w", members=(Member(name="w", shape=(16, 16), dtype="float32"),)),
        weight=structure(plain, 0) + weight * structure(fold, 1) + 0.05 * random_matrix(16, 16, 2).float(),
        unit=WeightGroup(members=("w",), columns=(16,), rows=16, bias=""),
        span=(0, 16),
        metric=Metric(
            second=torch.eye(16).double(),
            mean=torch.zeros(16).double(),
            outputs=OutputWeights(torch.ones(16)),
            count=10**6,
        ),
        bias=None,
    )
    errors = [weighted.error(weighted.fitted(shape, (2,)).to_matrix()) for shape in (plain, fold)]
    ratio = errors[1] / errors[0]

    sites, bonds = best_shape(weighted, plain, (2,), [plain, fold])

    assert plain.parameters((2,)) == fold.parameters((2,))
    assert (ratio < 0.98) == is_chosen
    assert (0.98 < ratio < 1.0) == (weight == 1.1)
    assert (sites, bonds) == (fold if is_chosen else plain, (2,))


def test_a_refit_keeps_sites_and_bonds(case: Case) -> None:
    weighted = case.weighted("2.weight")
    for sites in (low_rank(10, 16), balanced(10, 16, 2)):
        start = weighted.fitted(sites, sites.capped(2), 5)
        fitted = refitted(start, weighted.weight, torch.eye(16).double(), weighted.metric.outputs)
        assert (fitted.sites, fitted.bonds) == (sites, start.bonds)


def test_after_a_refit_the_mean_error_lies_between_two_means(case: Case) -> None:
    weighted = case.weighted("0.weight")
    before, after = torch.ones(12).double(), torch.arange(12).double()
    mpo = weighted.fitted(low_rank(16, 12), (2,))
    values = updated_tensors([Approximation(weighted=weighted, mpo=mpo, mean_before=before, mean_after=after)])
    state = case.model.state_dict()

    wanted = state["0.bias"] + state["0.weight"].double() @ before - mpo.to_matrix().double() @ after
    torch.testing.assert_close(values["0.bias"], wanted, rtol=EXACT, atol=EXACT)

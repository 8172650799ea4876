"""Fitted cores: never worse than where they started, as good as the closed form where there is one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.errors import DecompositionError
from mpocompress.mpo.fitting import fit
from mpocompress.mpo.metric import OutputWeights
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, balanced, low_rank
from mpocompress.mpo.tt_svd import factorise
from mpocompress.mpo.weighted_svd import weighted_product
from tests.draw import KINDS, random_matrix, site_shapes
from tests.mpo.test_weighted_svd import drawn, square

ROUNDING = 1e-5
"""Sums of some hundred products in float32, as a share of the whole."""


def started(weight: Tensor, sites: Sites, cap: int) -> MPO:
    return factorise(weight, sites, bonds=sites.capped(cap)).mpo


@settings(max_examples=25)
@given(site_shapes(3, 4), st.integers(1, 4), st.integers(0, 50), st.sampled_from(KINDS))
def test_a_fit_is_never_worse_and_keeps_sites_and_bonds(sites: Sites, cap: int, seed: int, kind: str) -> None:
    weight, second, outputs = drawn(*sites.shape, seed, kind)
    start = started(weight, sites, cap)
    fitted = fit(start, weight, second, outputs)
    whole = square(weight, second, outputs)

    assert (fitted.sites, fitted.bonds) == (sites, start.bonds)
    assert all(core.dtype == torch.float32 and not core.requires_grad for core in fitted.cores)
    before, after = (square(weight - mpo.to(torch.float64).to_matrix(), second, outputs) for mpo in (start, fitted))
    assert after <= before + ROUNDING * whole


@pytest.mark.parametrize("bond", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_of_a_low_rank_product_it_is_the_closed_form(bond: int, seed: int) -> None:
    """L-BFGS of 400 steps ends within a hundredth of the least square, in float32."""
    rows, cols = 7, 9
    weight = random_matrix(rows, cols, seed)
    second = torch.diag(torch.linspace(0.5, 2.0, cols).double())
    outputs = OutputWeights(torch.linspace(0.5, 2.0, rows))
    best = weighted_product(weight, second, outputs)
    fitted = fit(started(weight, low_rank(rows, cols), bond), weight, second, outputs, steps=400)
    left = scaled_square(weight - fitted.to_matrix().double(), second, outputs) / best.total

    assert best.tails[bond] - ROUNDING <= left <= best.tails[bond] + 0.01


def scaled_square(error: Tensor, second: Tensor, outputs: OutputWeights) -> float:
    return float((outputs.times(error @ second) * error).sum())


def test_a_fit_gains_where_the_metric_is_not_plain() -> None:
    weight, second, outputs = drawn(16, 16, 0)
    start = started(weight, balanced(16, 16, 2), 4)
    before, after = (
        square(weight - mpo.to(torch.float64).to_matrix(), second, outputs)
        for mpo in (start, fit(start, weight, second, outputs))
    )

    assert after < 0.5 * before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_is_fitted_in_float32(dtype: torch.dtype) -> None:
    weight, second, outputs = drawn(6, 6, 0)
    start = started(weight, low_rank(6, 6), 2).to(dtype)
    fitted = fit(start, weight.to(dtype), second, outputs)

    assert {core.dtype for core in fitted.cores} == {torch.float32}
    assert start.cores[0].dtype == dtype


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_odd_sizes_are_fitted_or_left_as_they_are(scale: float) -> None:
    weight, second, outputs = drawn(6, 6, 0)
    weight = weight * scale
    fitted = fit(started(weight, low_rank(6, 6), 2), weight, second, outputs)

    assert fitted.bonds == (2,)
    assert all(core.isfinite().all() for core in fitted.cores)


def test_a_start_of_nothing_stays_finite() -> None:
    weight, second, outputs = drawn(6, 6, 0)
    start = started(torch.zeros(6, 6), low_rank(6, 6), 2)
    nothing = MPO(cores=tuple(torch.zeros_like(core) for core in start.cores), sites=start.sites)
    fitted = fit(nothing, weight, second, outputs)

    assert all(core.isfinite().all() for core in fitted.cores)
    assert square(weight - fitted.to_matrix().double(), second, outputs) <= square(weight, second, outputs) * (1 + 1e-6)


def test_outputs_that_nothing_depends_on_leave_the_start() -> None:
    weight, second, _ = drawn(6, 6, 0)
    start = started(weight, low_rank(6, 6), 2)

    fitted = fit(start, weight, second, OutputWeights(torch.zeros(6)))
    assert fitted.to_matrix().equal(start.to(torch.float32).to_matrix())


def test_a_start_of_another_shape_is_refused() -> None:
    weight, second, outputs = drawn(6, 8, 0)

    with pytest.raises(
        DecompositionError,
        match=r"matrix 6 x 8: cores of 8 x 6; cores are fitted to a matrix of their own shape\. Start from",
    ):
        fit(started(weight.T.contiguous(), low_rank(8, 6), 2), weight, second, outputs)

"""Curves: their figures against real decompositions, their choices against trying every bond."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.mpo.sites import Sites, balanced, candidates, low_rank
from mpocompress.mpo.tt_svd import factorise
from mpocompress.planning.curves import (
    ErrorCurve,
    best_under_cap,
    best_under_parameters,
    best_within_error,
    error_curves,
)
from tests.draw import COMPUTED, random_matrix, shaped_matrices

FLOAT32_ERROR = 2e-3
"""Relative errors from float32 sums: a rounding of the squared norm, and its root."""


@given(shaped_matrices(most_sites=3), st.integers(1, 25))
def test_the_predicted_error_is_that_of_the_decomposition(drawn: tuple[Tensor, Sites], cap: int) -> None:
    weight, sites = drawn
    (curve,) = error_curves(weight, [sites])
    bonds = sites.capped(cap)
    real = factorise(weight, sites, bonds=bonds).relative_error

    if len(bonds) == 1:
        assert curve.error(bonds) == pytest.approx(real, abs=FLOAT32_ERROR)
    else:
        assert real <= curve.error(bonds) + FLOAT32_ERROR


@given(shaped_matrices(dtypes=(torch.float64,)))
def test_the_table_says_the_same_as_the_curve(drawn: tuple[Tensor, Sites]) -> None:
    weight, sites = drawn
    (curve,) = error_curves(weight, [sites])

    parameters, squares = curve.table()

    assert len(parameters) == curve.max_cap
    for cap, (count, square) in enumerate(zip(parameters, squares[0], strict=True), start=1):
        assert count == sites.parameters(sites.capped(cap)) < curve.dense_parameters
        assert square == pytest.approx(curve.error(sites.capped(cap)) ** 2)
    if curve.max_cap < max(sites.max_bonds):
        assert sites.parameters(sites.capped(curve.max_cap + 1)) >= curve.dense_parameters


@given(shaped_matrices(dtypes=(torch.float64,)), st.integers(0, 2000))
def test_the_cap_under_a_parameter_limit_is_the_largest(drawn: tuple[Tensor, Sites], limit: int) -> None:
    weight, sites = drawn
    (curve,) = error_curves(weight, [sites])
    fitting = [cap for cap in range(1, max(sites.max_bonds) + 1) if sites.parameters(sites.capped(cap)) <= limit]

    assert curve.cap_for_parameters(limit) == max(fitting, default=0)


@given(shaped_matrices(dtypes=(torch.float64,)), st.floats(0, 0.99))
def test_bonds_for_an_error_keep_it_and_no_smaller_ones_do(drawn: tuple[Tensor, Sites], allowed: float) -> None:
    weight, sites = drawn
    (curve,) = error_curves(weight, [sites])
    bonds = curve.bonds_for_error(allowed)

    assert curve.error(bonds) <= allowed + 1e-7  # the root of a float64 rounding of the squared norm
    share = allowed**2 / len(bonds)
    for tail, bond in zip(curve.tails, bonds, strict=True):
        assert bond == 1 or tail[bond - 1] > share


def curves_of(seed: int, rows: int = 24, cols: int = 16, kind: str = "gaussian") -> tuple[ErrorCurve, ...]:
    return error_curves(random_matrix(rows, cols, seed, kind), candidates(rows, cols, "auto"))


settings_of_curves = st.builds(
    curves_of,
    st.integers(0, 20),
    st.sampled_from([8, 24]),
    st.sampled_from([12, 16]),
    st.sampled_from(["gaussian", "decaying"]),
)


@given(settings_of_curves, st.integers(1, 30))
def test_the_shape_under_a_cap_loses_least_of_the_fewest_sites(curves: tuple[ErrorCurve, ...], cap: int) -> None:
    chosen = best_under_cap(curves, cap)
    smaller = [c for c in curves if len(c.tails) == 1 and c.sites.parameters(c.sites.capped(cap)) < c.dense_parameters]

    if chosen is None:
        assert not smaller
    else:
        assert chosen in smaller
        least = min(curve.error(curve.sites.capped(cap)) for curve in smaller)
        assert chosen.error(chosen.sites.capped(cap)) <= least * (1 + 1e-3)


@given(settings_of_curves, st.floats(0.01, 0.9))
def test_the_shape_within_an_error_costs_least(curves: tuple[ErrorCurve, ...], allowed: float) -> None:
    chosen = best_within_error(curves, allowed)
    costs = [c.sites.parameters(c.bonds_for_error(allowed)) for c in curves]

    if chosen is None:
        assert min(costs) >= curves[0].dense_parameters
    else:
        assert chosen.error(chosen.bonds_for_error(allowed)) <= allowed * (1 + 1e-9)
        assert chosen.sites.parameters(chosen.bonds_for_error(allowed)) <= min(costs) * (1 + 1e-3)


@given(settings_of_curves, st.integers(1, 400))
def test_the_shape_under_a_parameter_limit_loses_least(curves: tuple[ErrorCurve, ...], limit: int) -> None:
    best = best_under_parameters(curves, limit)
    every = [
        (curve.error(curve.sites.capped(cap)), curve, cap)
        for curve in curves
        for cap in range(1, curve.known_cap + 1)
        if curve.sites.parameters(curve.sites.capped(cap)) <= limit
    ]

    if best is None:
        assert not every
    else:
        curve, cap = best
        assert curve.sites.parameters(curve.sites.capped(cap)) <= limit
        assert curve.error(curve.sites.capped(cap)) <= min(error for error, _, _ in every) * (1 + 1e-3) + 1e-9


def test_a_tie_goes_to_the_first_shape() -> None:
    """Relative errors that differ by less than 0.1 % are a tie: 0.05 % is one, 0.15 % is not."""
    tails = (np.array([1.0, 0.5, 0.25, 0.0]),)
    almost = (np.array([1.0, 0.5, 0.25 * (1 - 5e-4) ** 2, 0.0]),)
    better = (np.array([1.0, 0.5, 0.25 * (1 - 1.5e-3) ** 2, 0.0]),)
    first, tied, last = (ErrorCurve(sites=low_rank(16, 16), tails=tail) for tail in (tails, almost, better))

    assert best_under_cap([first, tied], 2) is first
    assert best_under_cap([first, tied, last], 2) is last
    assert best_under_parameters([first, tied], 64) == (first, 2)


def test_more_sites_do_not_compete_under_a_cap() -> None:
    """At the same cap they cost several times the parameters, so that a smaller error would say nothing."""
    few = ErrorCurve(sites=low_rank(16, 16), tails=(np.array([1.0, 0.5, 0.25]),))
    more = ErrorCurve(sites=balanced(16, 16, 3), tails=(np.array([1.0, 0.1, 0.0]), np.array([1.0, 0.1, 0.0])))

    assert best_under_cap([few, more], 2) is few
    assert best_under_cap([more], 2) is more


def test_nothing_to_choose_from_is_nothing_chosen() -> None:
    assert best_under_cap([], 4) is None
    assert best_within_error([], 0.1) is None
    assert best_under_parameters([], 100) is None


@pytest.mark.parametrize("dtype", COMPUTED)
def test_a_curve_cut_at_a_cap_agrees_with_the_whole_one(dtype: torch.dtype) -> None:
    weight = random_matrix(32, 24, seed=3).to(dtype)
    (whole,) = error_curves(weight, [low_rank(32, 24)])
    (cut,) = error_curves(weight, [low_rank(32, 24)], max_bond=6)

    assert cut.max_cap == 6
    for bond in range(1, 7):
        assert cut.error((bond,)) == pytest.approx(whole.error((bond,)), rel=1e-5)  # the residual is a float32 sum
    assert cut.error((7,)) == cut.error((6,))


def test_a_matrix_that_cannot_get_smaller_has_no_cap() -> None:
    (curve,) = error_curves(torch.eye(1), [low_rank(1, 1)])

    assert curve.max_cap == 0
    assert [column.shape for column in curve.table()] == [(0,), (1, 0)]


def test_zeros_lose_nothing() -> None:
    (curve,) = error_curves(torch.zeros(8, 8), [low_rank(8, 8)])

    assert curve.error((1,)) == 0.0
    assert curve.bonds_for_error(0.0) == (1,)

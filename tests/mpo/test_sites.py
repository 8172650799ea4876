"""Site shapes: counts against cores that exist, shapes against brute force, refusals in words."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpocompress.errors import SitesError
from mpocompress.mpo.sites import Sites, balanced, candidates, folded, low_rank
from tests.draw import site_shapes


@given(site_shapes(), st.data())
def test_parameters_are_the_entries_of_the_cores(sites: Sites, data: st.DataObject) -> None:
    bonds = tuple(data.draw(st.integers(1, 6)) for _ in sites.max_bonds)
    chain = (1, *bonds, 1)

    cores = [
        torch.empty(left, row, col, right)
        for left, row, col, right in zip(chain, sites.row_dims, sites.col_dims, chain[1:], strict=False)
    ]

    assert sites.parameters(bonds) == sum(core.numel() for core in cores)


@given(site_shapes())
def test_the_largest_useful_bond_is_the_short_side_of_the_unfolding(sites: Sites) -> None:
    for cut, bond in enumerate(sites.max_bonds, start=1):
        assert bond == min(torch.empty(sites.dims).reshape(math.prod(sites.dims[:cut]), -1).shape)


@given(site_shapes(), st.integers(1, 40))
def test_a_cap_binds_every_bond_and_raises_none(sites: Sites, cap: int) -> None:
    assert sites.capped(cap) == tuple(min(cap, bond) for bond in sites.max_bonds)
    assert sites.parameters(sites.capped(cap)) <= sites.parameters(sites.capped(cap + 1))


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["auto", "lowrank"]))
def test_every_matrix_has_a_candidate_and_every_candidate_fits(rows: int, cols: int, choice: str) -> None:
    shapes = candidates(rows, cols, "auto" if choice == "auto" else "lowrank")

    assert shapes[0] == low_rank(rows, cols)
    assert all(sites.shape == (rows, cols) for sites in shapes)
    assert len(set(shapes)) == len(shapes)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 5))
def test_a_balanced_shape_is_the_evenest_there_is(rows: int, cols: int, count: int) -> None:
    try:
        sites = balanced(rows, cols, count)
    except SitesError:
        return

    for side, dims in ((rows, sites.row_dims), (cols, sites.col_dims[::-1])):
        evenest = min(unevenness(dims) for dims in factorisations(side, count))
        assert list(dims) == sorted(dims, reverse=True)
        assert unevenness(dims) == pytest.approx(evenest)
    assert all(dim > 1 for dim in sites.dims)


def factorisations(number: int, count: int) -> list[tuple[int, ...]]:
    """Every ordered product of `count` divisors that is `number`."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    if count == 1:
        return [(number,)]
    return [(first, *rest) for first in divisors for rest in factorisations(number // first, count - 1)]


def unevenness(dims: tuple[int, ...]) -> float:
    return sum(math.log(dim) ** 2 for dim in dims)


@given(st.integers(2, 300), st.integers(2, 300), st.integers(2, 5))
def test_a_balanced_shape_is_refused_only_where_a_site_would_be_empty(rows: int, cols: int, count: int) -> None:
    rows_few, cols_few = (prime_factors(side) for side in (rows, cols))
    if rows_few + cols_few >= count + 1:  # the rows fill from the first site, the columns from the last
        assert balanced(rows, cols, count).shape == (rows, cols)
    if rows_few + cols_few < count:
        with pytest.raises(SitesError, match=rf"matrix {rows} x {cols}: .*too few divisors to fill {count} sites"):
            balanced(rows, cols, count)


def prime_factors(number: int) -> int:
    """How many prime factors a number has, repeats counted."""
    for divisor in itertools.count(2):
        if divisor > number:
            return 0
        if number % divisor == 0:
            return 1 + prime_factors(number // divisor)
    return 0


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_sides_of_the_paper_split_evenly(count: int) -> None:
    sites = balanced(2**10, 2**10, count)

    assert max(sites.row_dims) <= 2 * min(sites.row_dims)
    assert max(sites.dims) <= 4 * min(sites.dims)


@pytest.mark.parametrize(
    ("sites", "label"),
    [
        (low_rank(7, 5), "low rank"),
        (folded(32, 64, 4, 4), "split 4"),
        (folded(64, 28, 4, 1), "fold 4x1"),
        (folded(28, 64, 1, 4), "fold 1x4"),
        (balanced(64, 64, 3), "3 sites"),
        (balanced(64, 64, 2), "2 sites"),
        (folded(64, 28, 1, 1), "low rank"),
    ],
)
def test_a_label_says_how_the_digits_are_shared(sites: Sites, label: str) -> None:
    assert sites.label == label


def test_a_shape_of_one_row_digit_has_no_order() -> None:
    assert not low_rank(8, 8).anti_aligned
    assert not folded(8, 8, 1, 2).anti_aligned
    assert folded(8, 8, 2, 2).anti_aligned


@pytest.mark.parametrize(
    ("row_dims", "col_dims", "message"),
    [
        ((2,), (2,), r"sites rows \(2,\) x columns \(2,\): 1 row dims and 1 column dims; .*at least two sites"),
        (
            (2, 2),
            (2, 2, 2),
            r"2 row dims and 3 column dims; every site has one of each.*a site without rows or columns has a dim of 1",
        ),
        ((2, 0), (2, 2), r"a dim below 1; a digit has at least one value\. Pass dims of 1 or more"),
        ((2, 2), (-1, 2), "a dim below 1"),
    ],
)
def test_dims_that_are_no_shape_are_refused(row_dims: tuple[int, ...], col_dims: tuple[int, ...], message: str) -> None:
    with pytest.raises(SitesError, match=message):
        Sites(row_dims=row_dims, col_dims=col_dims)


@pytest.mark.parametrize("count", [-1, 0, 1, 6])
def test_numbers_of_sites_out_of_range_are_refused(count: int) -> None:
    message = rf"matrix 64 x 64: got {count} sites; balanced shapes have 2 to 5 sites\. Use 2 to 5 sites"
    with pytest.raises(SitesError, match=message):
        candidates(64, 64, count)


@pytest.mark.parametrize(("row_fold", "col_fold", "side"), [(3, 1, "64 rows"), (1, 5, "96 columns"), (0, 1, "64 rows")])
def test_folds_that_do_not_divide_are_refused(row_fold: int, col_fold: int, side: str) -> None:
    with pytest.raises(SitesError, match=rf"matrix 64 x 96: a fold of \d for {side}; a fold must be a divisor"):
        folded(64, 96, row_fold, col_fold)


def test_two_primes_cannot_fill_three_sites() -> None:
    message = r"7 = 7 x 1 x 1 and 5 = 1 x 1 x 5; its sides have too few divisors to fill 3 sites\. Use fewer"
    with pytest.raises(SitesError, match=message):
        balanced(7, 5, 3)


def test_two_primes_in_two_sites_are_a_low_rank_product() -> None:
    assert balanced(7, 5, 2) == low_rank(7, 5)


def test_one_entry_has_a_low_rank_shape() -> None:
    assert low_rank(1, 1).parameters((1,)) == 2
    assert candidates(1, 1, "auto")[0].max_bonds == (1,)

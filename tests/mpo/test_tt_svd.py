"""Matrix to MPO: exactness, what is discarded, oracles, edges, every target, every refusal."""

from __future__ import annotations

import math

import pytest
import tensorly as tl
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train_matrix
from torch import Tensor

from mpocompress.errors import DecompositionError, SitesError, TargetError
from mpocompress.mpo.sites import Sites, SitesChoice, balanced, candidates, folded, low_rank
from mpocompress.mpo.tt_svd import factorise, measured_error
from mpocompress.planning.single_matrix import decompose
from mpocompress.planning.targets import Truncation
from tests.draw import EPS, decaying, random_matrix, shaped_matrices

SUM_SHARE = 1e-5
"""How far discarded weights may be from the squared error, as a share of the squared norm: what the report promises."""


@given(shaped_matrices(dtypes=tuple(EPS)))
def test_full_bonds_are_exact(drawn: tuple[Tensor, Sites]) -> None:
    weight, sites = drawn
    computed = torch.promote_types(weight.dtype, torch.float32)

    result = factorise(weight, sites)

    assert result.discarded_weights == (0.0,) * len(sites.max_bonds)
    assert result.mpo.cores[0].dtype == computed
    # Up to 4 sweeps over sides of at most 625: a rounding each, some dozens in all.
    assert measured_error(weight.to(computed), result.mpo) <= 100 * EPS[computed]


@given(shaped_matrices(), st.integers(1, 25))
def test_the_discarded_weights_add_up_to_the_squared_error(drawn: tuple[Tensor, Sites], cap: int) -> None:
    weight, sites = drawn
    result = factorise(weight, sites, bonds=sites.capped(cap))
    dense = result.mpo.to(torch.float64).to_matrix()

    missed = float((weight.double() - dense).square().sum())
    norm = float(weight.double().square().sum())

    assert result.mpo.bonds == sites.capped(cap)
    assert abs(sum(result.discarded_weights) - missed) <= SUM_SHARE * norm
    assert result.squared_norm == pytest.approx(norm, rel=1e-6)
    assert measured_error(weight, result.mpo) == pytest.approx(result.relative_error, abs=3e-3, rel=1e-3)


@given(shaped_matrices(), st.integers(1, 25))
def test_every_core_but_the_last_is_an_isometry_and_the_last_carries_the_norm(
    drawn: tuple[Tensor, Sites], cap: int
) -> None:
    weight, sites = drawn
    mpo = factorise(weight, sites, bonds=sites.capped(cap)).mpo

    for core in mpo.cores[:-1]:
        flat = core.reshape(-1, core.shape[-1])
        torch.testing.assert_close(
            flat.T @ flat, torch.eye(flat.shape[1], dtype=flat.dtype), rtol=0, atol=100 * EPS[flat.dtype]
        )
    assert float(mpo.cores[-1].norm()) == pytest.approx(mpo.norm(), rel=100 * EPS[weight.dtype], abs=1e-30)
    assert all(core.is_contiguous() for core in mpo.cores)


@given(shaped_matrices(dtypes=(torch.float64,)), st.integers(1, 25))
def test_one_cut_is_the_best_there_is_and_more_are_near_it(drawn: tuple[Tensor, Sites], cap: int) -> None:
    weight, sites = drawn
    aligned = Sites(row_dims=sites.row_dims, col_dims=sites.col_dims)
    result = factorise(weight, aligned, bonds=aligned.capped(cap))
    with tl.backend_context("pytorch", local_threadsafe=True):
        digits = weight.reshape(*sites.row_dims, *sites.col_dims)
        theirs = tensor_train_matrix(digits, rank=[1, *aligned.capped(cap), 1]).to_matrix()
    norm = float(weight.norm())

    ours, others = float((weight - result.mpo.to_matrix()).norm()), float((weight - theirs).norm())

    # The same sweep with an exact SVD: equal up to equal singular values, which may be cut either way.
    assert ours <= others * math.sqrt(len(sites.max_bonds)) + 1e-7 * norm
    if len(sites.max_bonds) == 1:
        assert ours == pytest.approx(others, abs=1e-7 * norm)


@given(shaped_matrices(), st.floats(0.01, 0.95))
def test_an_error_target_holds_for_the_whole_matrix(drawn: tuple[Tensor, Sites], allowed: float) -> None:
    weight, sites = drawn
    result = factorise(weight, sites, relative_error=allowed)

    assert measured_error(weight, result.mpo) <= allowed * (1 + 1e-5)  # float32 sums of the error itself
    if len(sites.max_bonds) == 1 and result.mpo.bonds[0] > 1:
        exact = torch.linalg.svdvals(
            weight.double().reshape(sites.shape) if sites == low_rank(*sites.shape) else unfolded(weight, sites)
        )
        assert exact[result.mpo.bonds[0] - 1 :].square().sum().sqrt() > allowed * weight.double().norm() * (1 - 1e-5)


def unfolded(weight: Tensor, sites: Sites) -> Tensor:
    """The only unfolding of a two-site shape, from the definition of the digits."""
    first_row, second_row = sites.row_dims
    rows = weight.double().reshape(second_row, first_row, -1).transpose(0, 1) if sites.anti_aligned else weight.double()
    return rows.reshape(first_row, second_row, *sites.col_dims).transpose(1, 2).reshape(sites.dims)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_no_cut_takes_more_than_an_even_share_of_what_is_left(count: int) -> None:
    result = factorise(random_matrix(64, 64, 0), balanced(64, 64, count), relative_error=0.5)

    left = 0.25 * result.squared_norm
    for cut, weight in enumerate(result.discarded_weights):
        assert weight <= left / (count - 1 - cut) * (1 + 1e-9)
        left -= weight
    assert left >= 0


@pytest.mark.parametrize("bond", [6, 8, 10, 12])
def test_a_small_discarded_weight_is_no_difference_of_large_numbers(bond: int) -> None:
    """In float32 such a difference is lost below 3e-4 of the norm; what is dropped here is down to there."""
    weight = decaying(64, 64, seed=0).float()
    result = factorise(weight, low_rank(64, 64), bonds=(bond,))

    assert result.relative_error == pytest.approx(0.5**bond, rel=1e-2)


def test_a_large_matrix_of_low_rank_keeps_its_rank_and_no_more_under_an_error() -> None:
    left, right = random_matrix(600, 10, 0).float(), random_matrix(10, 600, 1).float()

    result = factorise(left @ right, low_rank(600, 600), relative_error=3e-4)

    assert result.mpo.bonds == (10,)


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [
        (torch.tensor([[3.0]]), low_rank(1, 1)),
        (random_matrix(7, 1, 0), low_rank(7, 1)),
        (random_matrix(1, 8, 0), balanced(1, 8, 2)),
        (random_matrix(13, 11, 0), balanced(13, 11, 2)),
        (random_matrix(13, 64, 0), balanced(13, 64, 5)),
        (random_matrix(64, 64, 0), balanced(64, 64, 5)),
        (torch.zeros(8, 8), folded(8, 8, 2, 2)),
        (torch.full((8, 6), 1e-30, dtype=torch.float64), low_rank(8, 6)),
        (torch.full((8, 6), 65504.0, dtype=torch.float16), low_rank(8, 6)),
        (torch.full((8, 6), 1e12), low_rank(8, 6)),
        (torch.full((8, 6), 3e38, dtype=torch.bfloat16), low_rank(8, 6)),
        (torch.full((8, 6), 1e25), low_rank(8, 6)),
        (torch.full((8, 6), 1e-25), low_rank(8, 6)),
    ],
    ids=lambda value: (
        "" if isinstance(value, Sites) else f"{tuple(value.shape)} of {float(value[0, 0]):.3g} {value.dtype}"
    ),
)
def test_edges_are_exact_at_full_bond(matrix: Tensor, shape: Sites) -> None:
    result = factorise(matrix, shape)

    scale = float(matrix.double().abs().max()) or 1.0
    difference = result.mpo.to(torch.float64).to_matrix() / scale - matrix.double() / scale
    assert float(difference.abs().max()) <= 1e-5  # float32 products of up to 64 entries
    assert result.relative_error == 0.0


def test_a_matrix_that_is_not_contiguous_is_read_right() -> None:
    weight = random_matrix(12, 8, 0)

    assert measured_error(weight.T, factorise(weight.T, balanced(8, 12, 2)).mpo) <= 1e-14


def test_a_weight_with_a_gradient_is_left_as_it_is() -> None:
    weight = torch.nn.Parameter(random_matrix(8, 8, 0).float())
    before = weight.detach().clone()

    mpo = decompose(weight, truncation=Truncation(max_bond=2))

    assert not any(core.requires_grad for core in mpo.cores)
    assert torch.equal(weight.detach(), before)


CHOICES: list[SitesChoice] = ["auto", "lowrank", 2, 3, 4, 5]


@pytest.mark.parametrize("sites", CHOICES)
@pytest.mark.parametrize("dtype", list(EPS))
def test_every_choice_of_sites_gives_cores_in_the_dtype_of_the_weight(sites: SitesChoice, dtype: torch.dtype) -> None:
    weight = decaying(64, 32, seed=0).to(dtype)

    mpo = decompose(weight, truncation=Truncation(max_bond=3), sites=sites)

    assert {core.dtype for core in mpo.cores} == {dtype}
    assert max(mpo.bonds) == 3
    assert mpo.sites in candidates(64, 32, sites)


@pytest.mark.parametrize("sites", CHOICES)
@pytest.mark.parametrize("limit", [200, 400, 1000])
def test_a_parameter_limit_is_kept_and_used_to_within_one_bond(sites: SitesChoice, limit: int) -> None:
    weight = random_matrix(64, 32, 0)

    mpo = decompose(weight, truncation=Truncation(max_params=limit), sites=sites)

    assert mpo.parameters <= limit
    assert mpo.sites.parameters(mpo.sites.capped(max(mpo.bonds) + 1)) > limit


def test_keep_counts_the_parameters_of_the_matrix() -> None:
    weight = random_matrix(64, 64, 0)

    assert decompose(weight, truncation=Truncation(keep=0.25), sites="lowrank").bonds == (8,)


@pytest.mark.parametrize("sites", CHOICES)
@pytest.mark.parametrize("allowed", [0.9, 0.3, 0.01])
@pytest.mark.parametrize("dtype", list(EPS))
def test_an_error_or_energy_target_holds_for_the_cores_as_they_come(
    sites: SitesChoice, allowed: float, dtype: torch.dtype
) -> None:
    weight = decaying(32, 16, seed=1).to(dtype)

    for truncation in (Truncation(max_error=allowed), Truncation(energy=1 - allowed**2)):
        mpo = decompose(weight, truncation=truncation, sites=sites)
        assert measured_error(weight, mpo) <= allowed


def test_an_error_below_the_rounding_of_the_dtype_is_refused_or_held() -> None:
    weight = decaying(32, 16, seed=1).to(torch.bfloat16)

    try:
        mpo = decompose(weight, truncation=Truncation(max_error=1e-3))
    except TargetError:
        return

    assert measured_error(weight, mpo) <= 1e-3


@pytest.mark.parametrize("limit", [4, 100])
def test_a_limit_above_what_a_small_matrix_needs_is_no_error(limit: int) -> None:
    """Nothing is kept dense here, so an MPO that is no smaller than its matrix is an answer."""
    mpo = decompose(torch.eye(2), truncation=Truncation(max_params=limit))

    assert mpo.parameters <= limit


def test_a_limit_that_leaves_room_for_every_bond_is_exact() -> None:
    weight = random_matrix(8, 8, 0)

    assert measured_error(weight, decompose(weight, truncation=Truncation(max_params=1000))) <= 1e-14


def test_a_parameter_limit_below_bond_one_is_refused() -> None:
    message = r"matrix 64 x 32: a limit of 10 parameters; bond 1 already needs \d+ in the best site shape\. Allow more"
    with pytest.raises(TargetError, match=message):
        decompose(random_matrix(64, 32, 0), truncation=Truncation(max_params=10))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(3), r"matrix 3: a 1-D tensor of float32; only a non-empty matrix .*Pass a 2-D weight"),
        (torch.zeros(2, 2, 2), "matrix 2 x 2 x 2: a 3-D tensor"),
        (
            torch.zeros(0, 4),
            "matrix 0 x 4: a 2-D tensor of float32; only a non-empty matrix of ",
        ),
        (torch.zeros(2, 2, dtype=torch.int64), "a 2-D tensor of int64"),
        (torch.zeros(2, 2, dtype=torch.complex64), "a 2-D tensor of complex64"),
        (
            torch.full((2, 2), 1e200, dtype=torch.float64),
            "entries above 1e150; their squares exceed the range of float64",
        ),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(DecompositionError, match=message):
        decompose(weight, truncation=Truncation(max_bond=1))


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_refused_and_counted(value: float, dtype: torch.dtype) -> None:
    weight = torch.ones(4, 4, dtype=dtype)
    weight[1, 2] = weight[3, 3] = value

    with pytest.raises(DecompositionError, match=r"matrix 4 x 4: 2 entries that are NaN or Inf; .*exclude this layer"):
        decompose(weight, truncation=Truncation(max_bond=1))


def test_sites_for_another_matrix_are_refused() -> None:
    with pytest.raises(
        SitesError, match=r"matrix 8 x 8: sites for 4 x 8|matrix 8 x 8: sites for .*Choose dims whose products"
    ):
        decompose(random_matrix(8, 8, 0), truncation=Truncation(max_bond=1), sites=low_rank(4, 8))


def test_the_relative_error_is_the_norm_of_the_difference() -> None:
    weight = random_matrix(9, 6, 0)
    mpo = factorise(weight, low_rank(9, 6), bonds=(2,)).mpo

    assert measured_error(weight, mpo) == pytest.approx(float((weight - mpo.to_matrix()).norm() / weight.norm()))


def test_zeros_that_come_out_as_zeros_have_no_error() -> None:
    zeros = torch.zeros(8, 8)

    assert measured_error(zeros, decompose(zeros, truncation=Truncation(max_bond=1))) == 0.0


def test_the_same_weight_gives_the_same_bits() -> None:
    weight = random_matrix(24, 24, 0).float()
    first, second = (decompose(weight.clone(), truncation=Truncation(max_bond=4)) for _ in range(2))

    assert all(torch.equal(core, again) for core, again in zip(first.cores, second.cores, strict=True))

"""Index order: entry by entry against the definition, and against tensorly for aligned sites."""

from __future__ import annotations

import itertools

import tensorly as tl
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.tt_matrix import TTMatrix

from mpocompress.mpo.contraction import (
    has_row_blocks,
    row_blocks,
    to_matrix,
    to_site_tensor,
)
from mpocompress.mpo.sites import Sites, low_rank
from tests.draw import EPS, site_shapes


def number(digits: tuple[int, ...], dims: tuple[int, ...]) -> int:
    """The index that digits count, the first one slowest."""
    index = 0
    for digit, dim in zip(digits, dims, strict=True):
        index = index * dim + digit
    return index


def row_number(digits: tuple[int, ...], sites: Sites) -> int:
    step = -1 if sites.anti_aligned else 1
    return number(digits[::step], sites.row_dims[::step])


@given(site_shapes(most_sites=3, most=3))
def test_the_site_tensor_has_every_entry_at_its_digits(sites: Sites) -> None:
    rows, cols = sites.shape
    weight = torch.arange(float(rows * cols)).reshape(rows, cols)
    tensor = to_site_tensor(weight, sites).reshape(
        [d for pair in zip(sites.row_dims, sites.col_dims, strict=True) for d in pair]
    )

    for row in itertools.product(*map(range, sites.row_dims)):
        for col in itertools.product(*map(range, sites.col_dims)):
            place = tuple(digit for pair in zip(row, col, strict=True) for digit in pair)
            assert tensor[place] == weight[row_number(row, sites), number(col, sites.col_dims)]


@given(site_shapes(), st.data())
def test_the_matrix_is_the_sum_over_all_bonds(sites: Sites, data: st.DataObject) -> None:
    chain = (1, *(data.draw(st.integers(1, 3)) for _ in sites.max_bonds), 1)
    generator = torch.Generator().manual_seed(0)
    cores = [
        torch.randn(left, row, col, right, generator=generator, dtype=torch.float64)
        for left, row, col, right in zip(chain, sites.row_dims, sites.col_dims, chain[1:], strict=False)
    ]
    tensor = cores[0].reshape(-1, chain[1])
    for core in cores[1:]:
        tensor = torch.einsum("ab,brcd->arcd", tensor, core).reshape(-1, core.shape[-1])

    matrix = to_matrix(cores, sites)

    # Both sum in float64; only the order of the sums may differ.
    torch.testing.assert_close(to_site_tensor(matrix, sites).reshape(-1), tensor.reshape(-1), rtol=1e-12, atol=1e-12)


@given(site_shapes(), st.sampled_from(list(EPS)))
def test_cores_without_bonds_give_back_the_dtype_and_the_kronecker_product(sites: Sites, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    # Small integers: exact in every dtype, so that the comparison may be too.
    cores = [
        torch.randint(-1, 2, (1, row, col, 1), generator=generator).to(dtype)
        for row, col in zip(sites.row_dims, sites.col_dims, strict=True)
    ]
    aligned = Sites(row_dims=sites.row_dims, col_dims=sites.col_dims)
    kronecker = torch.ones(1, 1, dtype=dtype)
    for core in cores:
        kronecker = torch.kron(kronecker, core[0, :, :, 0])

    assert to_matrix(cores, aligned).dtype == dtype
    assert torch.equal(to_matrix(cores, aligned), kronecker)


@given(site_shapes(), st.integers(1, 4))
def test_aligned_sites_are_those_of_tensorly(sites: Sites, bond: int) -> None:
    sites = Sites(row_dims=sites.row_dims, col_dims=sites.col_dims)
    chain = (1, *(bond for _ in sites.max_bonds), 1)
    generator = torch.Generator().manual_seed(2)
    cores = [
        torch.randn(left, row, col, right, generator=generator, dtype=torch.float64)
        for left, row, col, right in zip(chain, sites.row_dims, sites.col_dims, chain[1:], strict=False)
    ]
    with tl.backend_context("pytorch", local_threadsafe=True):
        theirs = TTMatrix(list(cores)).to_matrix()

    torch.testing.assert_close(to_matrix(cores, sites), theirs, rtol=1e-12, atol=1e-12)  # float64, other order of sums


def test_an_order_that_does_not_change_is_a_view() -> None:
    weight = torch.zeros(6, 4)

    assert to_site_tensor(weight, low_rank(6, 4)).data_ptr() == weight.data_ptr()


def test_the_dense_matrix_is_new() -> None:
    core = torch.ones(1, 2, 1, 1)
    matrix = to_matrix((core, torch.ones(1, 1, 1, 1)), low_rank(2, 1))

    matrix.zero_()

    assert core.sum() == 2


@given(site_shapes(most_sites=2), st.integers(1, 4), st.integers(1, 60))
def test_row_blocks_are_the_matrix(sites: Sites, bond: int, entries: int) -> None:
    generator = torch.Generator().manual_seed(bond)
    (rows, more_rows), (cols, more_cols) = sites.row_dims, sites.col_dims
    first = torch.randn(1, rows, cols, bond, generator=generator, dtype=torch.float64)
    second = torch.randn(bond, more_rows, more_cols, 1, generator=generator, dtype=torch.float64)
    if not has_row_blocks(sites):
        assert not sites.anti_aligned
        return

    blocks = list(row_blocks((first, second), sites, entries))

    assert [start for start, _ in blocks] == list(itertools.accumulate([len(b) for _, b in blocks[:-1]], initial=0))
    torch.testing.assert_close(torch.cat([block for _, block in blocks]), to_matrix((first, second), sites))

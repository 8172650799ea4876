"""The MPO value: canonical form, norm, tensorly both ways, chains that do not hold."""

from __future__ import annotations

import pytest
import tensorly as tl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.errors import SitesError
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, folded
from tests.draw import COMPUTED, EPS, site_shapes


@st.composite
def mpos(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = COMPUTED) -> MPO:
    sites = draw(site_shapes())
    chain = (1, *(draw(st.integers(1, 6)) for _ in sites.max_bonds), 1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from(dtypes))
    cores = tuple(
        torch.randn(left, row, col, right, generator=generator, dtype=torch.float64).to(dtype)
        for left, row, col, right in zip(chain, sites.row_dims, sites.col_dims, chain[1:], strict=False)
    )
    return MPO(cores=cores, sites=sites)


def tolerance(mpo: MPO) -> float:
    """Roundings of a chain of at most 4 products and factorisations over at most 25 x 6 entries each."""
    return 200 * EPS[mpo.cores[0].dtype]


def isometry_defect(core: Tensor, right: bool) -> float:
    flat = core.reshape(core.shape[0], -1).T if right else core.reshape(-1, core.shape[-1])
    return float((flat.T @ flat - torch.eye(flat.shape[1], dtype=core.dtype)).abs().max())


@given(mpos(), st.data())
def test_cores_beside_the_centre_are_isometries_and_the_matrix_stays(mpo: MPO, data: st.DataObject) -> None:
    centre = data.draw(st.integers(-len(mpo.cores), len(mpo.cores) - 1))
    canonical = mpo.canonical(centre)
    site = centre % len(mpo.cores)

    assert all(isometry_defect(core, right=False) <= tolerance(mpo) for core in canonical.cores[:site])
    assert all(isometry_defect(core, right=True) <= tolerance(mpo) for core in canonical.cores[site + 1 :])
    dense = mpo.to_matrix()
    assert (canonical.to_matrix() - dense).norm() <= tolerance(mpo) * max(core.norm() for core in mpo.cores) ** len(
        mpo.cores
    )
    assert canonical.cores[site].double().norm() == pytest.approx(mpo.norm(), rel=1e3 * EPS[dense.dtype], abs=1e-300)
    assert all(new <= old for new, old in zip(canonical.bonds, mpo.bonds, strict=True))
    assert canonical.parameters <= mpo.parameters


@given(mpos(dtypes=tuple(EPS)))
def test_the_norm_from_the_cores_is_the_norm_of_the_matrix(mpo: MPO) -> None:
    dense = mpo.to(torch.float64).to_matrix()

    # The squared norm is a float64 sum; where terms cancel, the root of a rounding of their size is left.
    scale = float(torch.stack([core.double().norm() for core in mpo.cores]).prod())
    assert mpo.norm() == pytest.approx(float(dense.norm()), rel=1e-9, abs=1e-7 * scale)


@given(mpos())
def test_parameters_and_bonds_are_those_of_the_cores(mpo: MPO) -> None:
    assert mpo.parameters == mpo.sites.parameters(mpo.bonds)
    assert mpo.shape == tuple(mpo.to_matrix().shape)
    assert MPO.from_cores(mpo.cores, anti_aligned=mpo.sites.anti_aligned).sites == mpo.sites


@given(mpos())
def test_tensorly_multiplies_out_to_the_same_matrix(mpo: MPO) -> None:
    mpo = MPO.from_cores(mpo.cores)

    theirs = mpo.to_tensorly()
    back = MPO.from_tensorly(theirs)

    assert all(ours is again for ours, again in zip(mpo.cores, back.cores, strict=True))
    scale = float(torch.stack([core.norm() for core in mpo.cores]).prod())
    with tl.backend_context("pytorch", local_threadsafe=True):
        dense = theirs.to_matrix()
    assert (dense - mpo.to_matrix()).abs().max() <= tolerance(mpo) * scale


def test_anti_aligned_rows_are_not_tensorlys() -> None:
    mpo = MPO(cores=(torch.ones(1, 4, 2, 1), torch.ones(1, 2, 4, 1)), sites=folded(8, 8, 2, 2))

    with pytest.raises(
        SitesError,
        match=r"rows \(4, 2\) x columns \(2, 4\): anti-aligned sites; .*rows would be permuted\. Decompose with",
    ):
        mpo.to_tensorly()


@pytest.mark.parametrize("dtype", list(EPS))
def test_a_new_dtype_rounds_and_the_same_one_shares(dtype: torch.dtype) -> None:
    mpo = MPO.from_cores([torch.rand(1, 3, 1, 2), torch.rand(2, 1, 2, 1)])
    rounded = mpo.to(dtype)

    assert {core.dtype for core in rounded.cores} == {dtype}
    assert all(core is again for core, again in zip(rounded.cores, rounded.to(dtype).cores, strict=True))
    assert mpo.cores[0].dtype == torch.float32


SHAPE = Sites(row_dims=(2, 3), col_dims=(3, 2))


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 2, 3, 4), (5, 3, 2, 1)],
        [(1, 2, 3, 4), (4, 3, 2, 2)],
        [(2, 2, 3, 4), (4, 3, 2, 1)],
        [(1, 3, 2, 4), (4, 3, 2, 1)],
        [(1, 2, 3, 4), (4, 3, 2, 1), (1, 1, 1, 1)],
        [(1, 2, 3, 4), (4, 6, 1)],
        [(1, 2, 3, 1)],
        [],
    ],
    ids=["bonds", "last", "first", "dims", "too many", "three dims", "too few", "none"],
)
def test_cores_that_are_no_chain_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(
        SitesError,
        match=r"MPO of rows \(2, 3\) x columns \(3, 2\): cores of .*outer bonds are 1|MPO cores: tensors of .* dim",
    ):
        MPO(cores=tuple(torch.ones(shape) for shape in shapes), sites=SHAPE)


def test_cores_without_four_dims_are_refused() -> None:
    with pytest.raises(SitesError, match=r"MPO cores: tensors of 2, 4 dimensions; a core has four: .*Reshape them"):
        MPO.from_cores([torch.ones(2, 2), torch.ones(1, 1, 1, 1)])


def test_one_core_is_no_mpo() -> None:
    with pytest.raises(SitesError, match=r"1 row dims and 1 column dims; .*at least two sites"):
        MPO.from_cores([torch.ones(1, 2, 2, 1)])


def test_the_repr_shows_shapes_and_no_entries() -> None:
    mpo = MPO(cores=(torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)), sites=Sites(row_dims=(3, 1), col_dims=(1, 2)))

    assert repr(mpo) == (
        "MPO(sites=Sites(row_dims=(3, 1), col_dims=(1, 2), anti_aligned=False), bonds=(2,), dtype=float32)"
    )

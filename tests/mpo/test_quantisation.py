"""Cores in int8: how far an entry moves, what comes back unchanged, and numbers at the ends of their types."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.errors import SitesError
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import (
    LARGEST_CODE,
    QuantisedMPO,
    channels,
    quantise,
    restore,
    rounded,
    stored_size_bytes,
)
from tests.draw import EPS, site_shapes

HALF_STEP = 0.5 * (1 + 1e-5)
"""Half a scale, and the roundings of the quotient and of the product of a code with its scale."""


@st.composite
def mpos(draw: st.DrawFn) -> MPO:
    """Cores in any dtype whose channels differ by many orders of magnitude; some are zero."""
    sites = draw(site_shapes())
    chain = (1, *(draw(st.integers(1, 6)) for _ in sites.max_bonds), 1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype, tiny = draw(st.sampled_from(list(EPS))), draw(st.sampled_from([0, -3, -7]))
    cores = []
    for left, row, col, right in zip(chain, sites.row_dims, sites.col_dims, chain[1:], strict=False):
        core = torch.randn(left, row, col, right, generator=generator, dtype=torch.float64)
        sizes = torch.randint(tiny, 3, (left, 1, 1, right), generator=generator)
        empty = torch.rand(left, 1, 1, right, generator=generator) < 0.2
        cores.append((core * 10.0**sizes).masked_fill(empty, 0).to(dtype))
    return MPO(cores=tuple(cores), sites=sites)


def by_channel(quantised: QuantisedMPO) -> list[tuple[Tensor, Tensor]]:
    """Codes with the channel as the first axis, and scales of a shape that goes with them."""
    *first, last = zip(quantised.codes, quantised.scales, strict=True)
    turned = [(code.movedim(3, 0), scale) for code, scale in first]
    return [(code, scale.reshape(-1, 1, 1, 1)) for code, scale in (*turned, last)]


@given(mpos())
def test_no_entry_moves_by_more_than_half_a_scale(mpo: MPO) -> None:
    quantised = quantise(mpo)
    restored = restore(quantised)

    assert {core.dtype for core in restored.cores} == {torch.float32}
    assert (restored.bonds, restored.sites) == (mpo.bonds, mpo.sites)
    for site, (old, new, scale) in enumerate(zip(mpo.cores, restored.cores, quantised.scales, strict=True)):
        last = site == len(mpo.cores) - 1
        step = scale.double().reshape((-1, 1, 1, 1) if last else (1, 1, 1, -1))
        assert ((new.double() - old.double()).abs() <= HALF_STEP * step).all()


@given(mpos())
def test_every_channel_uses_all_its_codes_and_none_is_beyond_them(mpo: MPO) -> None:
    quantised = quantise(mpo)

    assert {code.dtype for code in quantised.codes} == {torch.int8}
    assert all(code.is_contiguous() for code in quantised.codes)
    assert {scale.dtype for scale in quantised.scales} == {torch.float32}
    assert tuple(len(scale) for scale in quantised.scales) == channels(mpo.bonds)
    for codes, scale in by_channel(quantised):
        largest = codes.int().abs().amax((1, 2, 3))
        assert set(largest.tolist()) <= {0, LARGEST_CODE}
        assert (scale.flatten()[largest == 0] == 1).all()
        assert (scale > 0).all()


@given(mpos())
def test_what_was_restored_has_the_same_codes(mpo: MPO) -> None:
    once = quantise(mpo)
    twice = quantise(restore(once))

    for codes, again in zip(once.codes, twice.codes, strict=True):
        assert torch.equal(codes, again)
    for scale, again in zip(once.scales, twice.scales, strict=True):
        torch.testing.assert_close(scale, again, rtol=2 * EPS[torch.float32], atol=0)


@given(mpos(), st.sampled_from([2.0**-3, 2.0**9, -1.0]))
def test_a_power_of_two_goes_into_the_scales(mpo: MPO, factor: float) -> None:
    wide = mpo.to(torch.float64)
    quantised, other = quantise(wide), quantise(MPO(cores=tuple(factor * core for core in wide.cores), sites=mpo.sites))

    for (codes, scale), (again, wanted) in zip(by_channel(quantised), by_channel(other), strict=True):
        assert torch.equal(codes if factor > 0 else -codes, again)
        held = codes.flatten(1).any(1)
        assert torch.equal(torch.where(held, scale.flatten() * abs(factor), 1.0), wanted.flatten())


def test_halves_are_rounded_to_the_even_code() -> None:
    core = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5]).reshape(1, 6, 1, 1)

    quantised = quantise(MPO.from_cores([core, torch.ones(1, 1, 2, 1)]))

    assert quantised.codes[0].flatten().tolist() == [127, 0, 2, 2, 0, -2]
    assert quantised.scales[0].tolist() == [1.0]


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [
        (1e-45, torch.float32),  # the smallest number there is
        (1e-37, torch.float32),  # its scale would be subnormal
        (1e-300, torch.float64),
        (6e-8, torch.float16),
        (3.3e38, torch.float32),
        (3.3e38, torch.bfloat16),
        (65504.0, torch.float16),
        (1e38, torch.float64),
    ],
)
def test_numbers_at_the_ends_of_their_types_move_by_half_a_scale_too(largest: float, dtype: torch.dtype) -> None:
    core = (torch.linspace(-1, 1, 12, dtype=torch.float64) * largest).to(dtype).reshape(1, 4, 1, 3)
    last = torch.ones(3, 1, 2, 1, dtype=dtype)

    quantised = quantise(MPO.from_cores([core, last]))
    restored = restore(quantised).cores[0].double()

    assert restored.isfinite().all()
    assert (quantised.scales[0] >= torch.finfo(torch.float32).tiny).all()
    assert ((restored - core.double()).abs() <= HALF_STEP * quantised.scales[0].double()).all()
    assert torch.equal(quantise(restore(quantised)).codes[0], quantised.codes[0])


def test_numbers_beyond_float32_do_not_come_back_as_numbers() -> None:
    """So the error that is measured on them is none, and the weight is kept dense."""
    mpo = MPO.from_cores([torch.full((1, 2, 1, 1), 1e300, dtype=torch.float64), torch.ones(1, 1, 2, 1).double()])

    assert not rounded(mpo, torch.int8).to_matrix().isfinite().any()


def test_the_bytes_count_one_scale_a_channel() -> None:
    mpo = MPO.from_cores([torch.randn(1, 8, 2, 3), torch.randn(3, 4, 5, 7), torch.randn(7, 2, 6, 1)])
    quantised = quantise(mpo)
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*quantised.codes, *quantised.scales))

    assert [tuple(scale.shape) for scale in quantised.scales] == [(3,), (7,), (7,)]
    assert stored_size_bytes(mpo.parameters, mpo.bonds, "int8") == held == mpo.parameters + 4 * 17
    assert stored_size_bytes(mpo.parameters, mpo.bonds, "float64") == 8 * mpo.parameters
    assert stored_size_bytes(100, (), "bfloat16") == 200


@pytest.mark.parametrize("dtype", list(EPS))
def test_floating_dtypes_are_rounded_as_ever(dtype: torch.dtype) -> None:
    mpo = MPO.from_cores([torch.randn(1, 8, 2, 3), torch.randn(3, 4, 5, 1)])

    for core, wanted in zip(rounded(mpo, dtype).cores, mpo.cores, strict=True):
        assert torch.equal(core, wanted.to(dtype))


def test_scales_of_other_cores_are_refused() -> None:
    quantised = quantise(MPO.from_cores([torch.randn(1, 8, 2, 3), torch.randn(3, 4, 5, 1)]))

    with pytest.raises(
        SitesError,
        match=r"^scales of an MPO in int8: shapes \[\(3,\), \(5,\)\]; one scale per channel has shapes ",
    ):
        QuantisedMPO(codes=quantised.codes, scales=(quantised.scales[0], torch.ones(5)), sites=quantised.sites)

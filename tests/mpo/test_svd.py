"""Our SVD against `torch.linalg.svd` in float64, on both of its ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.mpo import svd
from mpocompress.mpo.svd import GRAM_SIDE, Spectrum, spectrum, squared_norm, truncated_svd
from tests.draw import COMPUTED, EPS, KINDS, decaying, random_matrix


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    rows, cols = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    matrix = random_matrix(rows, cols, seed=draw(st.integers(0, 99)), kind=draw(st.sampled_from(KINDS)))
    return (matrix * 10.0 ** draw(st.integers(-3, 3))).to(draw(st.sampled_from(COMPUTED)))


@given(matrices(), st.integers(1, 24))
def test_the_triplets_are_a_best_approximation(matrix: Tensor, bond: int) -> None:
    u, s, v = truncated_svd(matrix, bond)
    exact = torch.linalg.svdvals(matrix.double())
    best = exact[bond:].square().sum().sqrt()
    norm = matrix.double().norm()
    eps = EPS[matrix.dtype]

    assert u.shape == (matrix.shape[0], min(bond, *matrix.shape))
    assert v.shape == (min(bond, *matrix.shape), matrix.shape[1])
    # Products and factorisations of sides up to 24 lose a few dozen roundings.
    torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1], dtype=u.dtype), rtol=0, atol=50 * eps)
    assert torch.all(s >= 0)
    assert torch.all(s[:-1] >= s[1:] - 10 * eps * norm)
    missed = (matrix.double() - u.double() * s.double() @ v.double()).norm()
    # A Gram matrix in float64 sees singular values down to 1e-8 of the largest; the rest is lost.
    assert missed <= best + (50 * eps + 1e-7) * norm


@given(matrices(), st.integers(1, 24))
def test_the_largest_entry_of_every_left_vector_is_positive(matrix: Tensor, bond: int) -> None:
    u, _, _ = truncated_svd(matrix, bond)

    assert torch.all(u.gather(0, u.abs().argmax(dim=0, keepdim=True)) >= 0)


@given(matrices(), st.integers(1, 24))
def test_the_same_matrix_gives_the_same_bits(matrix: Tensor, bond: int) -> None:
    for first, second in zip(truncated_svd(matrix, bond), truncated_svd(matrix.clone(), bond), strict=True):
        assert torch.equal(first, second)


@given(matrices(), st.none() | st.integers(1, 24))
def test_the_spectrum_is_that_of_torch_and_adds_up(matrix: Tensor, cap: int | None) -> None:
    computed = spectrum(matrix, cap)
    exact = torch.linalg.svdvals(matrix.double()).numpy()[: len(computed.values)]
    total = float(matrix.double().square().sum())

    # Squares are accurate to a rounding of the norm, so small singular values to its root.
    np.testing.assert_allclose(computed.values**2, exact**2, rtol=0, atol=1e-13 * total)
    assert math.isclose(float(np.sum(computed.values**2)) + computed.residual, total, rel_tol=1e-6, abs_tol=0)
    assert len(computed.values) == min(*matrix.shape, cap or 24)


def large(rank: int, noise: float, seed: int = 0) -> Tensor:
    """A float32 matrix above the size up to which the Gram matrix is always taken: a low rank and noise."""
    side = GRAM_SIDE + 8
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(side, rank, generator=generator)
    right = torch.randn(rank, side + 16, generator=generator)
    return left @ right / math.sqrt(rank) + noise * torch.randn(side, side + 16, generator=generator)


@pytest.mark.parametrize(("rank", "noise", "bond"), [(4, 1.0, 8), (64, 0.05, 16), (300, 0.3, 64), (8, 1e-3, 16)])
def test_the_randomised_way_is_within_a_thousandth_of_the_best(rank: int, noise: float, bond: int) -> None:
    matrix = large(rank, noise)
    best = math.sqrt(torch.linalg.svdvals(matrix.double())[bond:].square().sum())

    u, s, v = truncated_svd(matrix, bond)

    assert (matrix - u * s @ v).double().norm() <= 1.001 * best
    assert len(spectrum(matrix, bond).values) == bond
    assert math.sqrt(spectrum(matrix, bond).residual) == pytest.approx(best, rel=1e-3)
    torch.testing.assert_close(u.T @ u, torch.eye(bond), rtol=0, atol=1e-5)  # float32 QR of 520 rows


def test_what_is_small_beside_the_norm_is_found_in_float32_too() -> None:
    """A float32 Gram matrix would lose singular values under 3e-4 of the largest."""
    matrix = decaying(40, 40, seed=0, base=0.3).float()
    exact = torch.linalg.svdvals(matrix.double())

    for bond in (4, 8, 10):
        u, s, v = truncated_svd(matrix, bond)
        missed = (matrix.double() - u.double() * s.double() @ v.double()).norm()
        # Twice the best, and the rounding of a float32 product.
        assert missed <= 2 * exact[bond:].norm() + 5 * EPS[torch.float32]


def test_the_spectrum_of_a_large_low_rank_matrix_ends_where_its_rank_does() -> None:
    """Rounding in a float32 Gram matrix must not pass for singular values that an error target then keeps."""
    matrix = large(10, 0.0)

    computed = spectrum(matrix)

    norm = float(matrix.double().norm())
    assert math.sqrt(float(np.sum(computed.values[10:] ** 2))) <= 1e-5 * norm  # the matrix itself is rounded to 6e-8


def test_a_known_spectrum_leaves_nothing_over() -> None:
    computed = spectrum(random_matrix(30, 20, seed=1)[:, :5] @ random_matrix(5, 20, seed=2), 8)

    assert computed.residual <= 1e-12 * float(np.sum(computed.values**2))


def test_zeros_have_an_orthonormal_basis_all_the_same() -> None:
    u, s, v = truncated_svd(torch.zeros(6, 4), 2)

    torch.testing.assert_close(u.T @ u, torch.eye(2))
    assert s.tolist() == [0.0, 0.0]
    assert torch.isfinite(v).all()


def test_one_entry() -> None:
    u, s, v = truncated_svd(torch.tensor([[-3.0]]))

    assert (u.tolist(), s.tolist(), v.tolist()) == ([[1.0]], [3.0], [[-1.0]])


@given(st.integers(1, 3), st.integers(1, 5000), st.sampled_from(COMPUTED))
def test_the_squared_norm_is_summed_in_float64_over_runs(seed: int, count: int, dtype: torch.dtype) -> None:
    tensor = random_matrix(1, count, seed).to(dtype)

    # In float32 within runs of 4096: the roundings of one such sum, no more for longer tensors.
    assert squared_norm(tensor) == pytest.approx(float(tensor.double().square().sum()), rel=10 * EPS[dtype])


def test_the_squared_norm_of_a_view_is_that_of_its_entries() -> None:
    tensor = random_matrix(7, 9, seed=0)

    assert squared_norm(tensor.T[2:5]) == pytest.approx(float(tensor[:, 2:5].square().sum()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_squared_norm_shows_what_is_not_finite(value: float) -> None:
    tensor = torch.zeros(5000)
    tensor[4999] = value

    assert not math.isfinite(squared_norm(tensor))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_squared_norm_of_finite_entries_is_finite_and_not_lost(scale: float) -> None:
    """The squares leave the range of float32, the sum in float64 does not."""
    tensor = torch.full((5000,), scale)

    assert squared_norm(tensor) == pytest.approx(5000 * scale**2, rel=1e-5)


def test_a_spectrum_is_a_value() -> None:
    assert Spectrum(values=np.array([1.0]), residual=0.0).residual == 0.0


@pytest.mark.parametrize("shape", [(100, 500), (500, 100), (300, 310)])
def test_a_large_matrix_is_summed_in_pieces(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    part = matrix[:, 3:]
    whole, norm = spectrum(matrix), squared_norm(part.contiguous())
    monkeypatch.setattr(svd, "LARGE_ENTRIES", 2**14)
    pieces = spectrum(matrix)

    # Sums in another order, in float64: squares differ by a rounding of the norm.
    np.testing.assert_allclose(pieces.values**2, whole.values**2, rtol=0, atol=1e-13 * norm)
    assert squared_norm(part) == pytest.approx(norm, rel=1e-6)

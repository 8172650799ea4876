"""Fast, seeded, truncated SVD of an unfolding; handed to tensorly as its SVD method.

Two ways, chosen by size. The Gram matrix of the short side and its eigenvectors: exact, one pass over the matrix. Or,
where the bond is small beside both sides, a randomised range finder with power iterations: a few passes, an error
within 0.1 % of the best. A float32 Gram matrix cannot tell singular values below about 2e-4 of the largest from zero,
so it is formed again in float64 when what would be discarded is that small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRAM_SIDE = 512
"""Short sides up to this always go through the Gram matrix."""
RANDOMISED_SHARE = 8
"""Above that, the randomised way is taken when the bond is at most the short side over this."""
OVERSAMPLING, POWER_ITERATIONS = 8, 2
FLOAT32_FLOOR = 3e-3
"""Relative error below which a float32 Gram matrix is not trusted."""
NORM_RUN = 4096
SEED = 20121194


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The largest singular values of an unfolding, and what is left.

    Args:
        values: singular values, falling, float64, shape (n,).
        residual: sum of the squares of the others.
    """

    values: NDArray[np.float64]
    residual: float


def truncated_svd(
    matrix: Tensor,  # shape: (p, q)
    n_eigenvecs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular triplets of a matrix; the signature is the one tensorly asks of an SVD method.

    Args:
        matrix: a finite float32 or float64 matrix.
        n_eigenvecs: how many triplets; at most, and by default, the short side.

    Returns:
        U of shape (p, n), S of shape (n,), V of shape (n, q). U is orthonormal to rounding; the sign of each triplet is
        the one that makes the largest entry of the column of U positive. The same matrix gives the same bits.

    Source:
        Halko, Martinsson, Tropp 2011, "Finding Structure with Randomness", SIAM Review 53(2), doi:10.1137/090771806
        (randomised way).

    Example:
        >>> U, S, V = truncated_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
        >>> [round(s, 4) for s in S.tolist()]
        [3.0, 2.0]
    """
    short = min(matrix.shape)
    bond = short if n_eigenvecs is None else min(n_eigenvecs, short)
    if _randomised(short, bond):
        u, s, v = _range_svd(matrix, bond)
    else:
        u, s, v = _gram_svd(matrix, bond)
    rows = u.abs().argmax(dim=0)
    signs = torch.where(u[rows, torch.arange(u.shape[1])] < 0, -1.0, 1.0).to(u.dtype)
    return u * signs, s, v * signs[:, None]


def spectrum(
    matrix: Tensor,  # shape: (p, q)
    max_bond: int | None = None,
) -> Spectrum:
    """Singular values alone, as many as bonds up to a cap need.

    Args:
        matrix: a finite float32 or float64 matrix.
        max_bond: the largest bond of interest; None for all values.

    Returns:
        The spectrum; its values and residual add up to the squared Frobenius norm.

    Example:
        >>> spectrum(torch.diag(torch.tensor([1.0, 3.0, 2.0]))).values.round(4).tolist()
        [3.0, 2.0, 1.0]
    """
    short = min(matrix.shape)
    bond = short if max_bond is None else min(max_bond, short)
    total = squared_norm(matrix)
    if _randomised(short, bond):
        values = _range_svd(matrix, bond)[1].double().numpy()
    else:
        precise = matrix.double() if short <= GRAM_SIDE or matrix.dtype == torch.float64 else matrix
        eigenvalues = torch.linalg.eigvalsh(_gram(precise)).double().flip(0).clamp_min(0)
        values = eigenvalues[:bond].sqrt().numpy()
    return Spectrum(values=values, residual=max(total - float(np.sum(values[::-1] ** 2)), 0.0) if bond < short else 0.0)


def squared_norm(
    tensor: Tensor,  # any shape
) -> float:
    """Squared Frobenius norm: in the tensor's own dtype within short runs, in float64 over the runs.

    Args:
        tensor: a float32 or float64 tensor.

    Returns:
        The sum of the squared entries; not finite when an entry is not.

    Example:
        >>> squared_norm(torch.tensor([3.0, 4.0]))
        25.0
    """
    flat = tensor.reshape(-1)
    whole = flat.numel() // NORM_RUN * NORM_RUN
    runs = torch.linalg.vector_norm(flat[:whole].view(-1, NORM_RUN), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:]).double()
    return float(torch.dot(runs, runs) + rest * rest)


def _randomised(short: int, bond: int) -> bool:
    return short > GRAM_SIDE and bond * RANDOMISED_SHARE <= short


def _gram(matrix: Tensor) -> Tensor:
    """Gram matrix of the short side."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _gram_svd(matrix: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triplets from the eigenvectors of the Gram matrix."""
    values, vectors = torch.linalg.eigh(_gram(matrix))
    discarded, total = values[: len(values) - bond].clamp_min(0).sum(), values.sum()
    if matrix.dtype == torch.float32 and discarded <= FLOAT32_FLOOR**2 * total:
        values, vectors = torch.linalg.eigh(_gram(matrix.double()))
        vectors = vectors.to(matrix.dtype)
    basis = vectors[:, -bond:].flip(1)
    if matrix.shape[0] <= matrix.shape[1]:
        return _from_range(basis, basis.T @ matrix, bond)
    u, s, v = _from_range(basis, basis.T @ matrix.T, bond)
    return v.T, s, u.T


def _range_svd(matrix: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triplets inside a randomly sampled range, sharpened by power iterations."""
    generator = torch.Generator().manual_seed(SEED)
    width = min(bond + max(OVERSAMPLING, bond // 4), *matrix.shape)
    sample = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis = _orthonormal(matrix @ sample)
    for _ in range(POWER_ITERATIONS):
        basis = _orthonormal(matrix @ _orthonormal((basis.T @ matrix).T))
    return _from_range(basis, basis.T @ matrix, bond)


def _from_range(basis: Tensor, coefficients: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of `basis @ coefficients`, the basis orthonormal and the coefficients few and long."""
    long, small = torch.linalg.qr(coefficients.T)
    u, s, v = torch.linalg.svd(small.T, full_matrices=False)
    return basis @ u[:, :bond], s[:bond], v[:bond] @ long.T


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis

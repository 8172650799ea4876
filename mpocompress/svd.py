"""Fast, seeded, truncated SVD of an unfolding; handed to tensorly as its SVD method.

Two ways, chosen by size. The Gram matrix of the short side and its eigenvectors: exact, one pass over the matrix. Or,
where the bond is small beside both sides, a randomised block Krylov space, grown until the error is within 0.1 % of the
best: a few passes. A float32 Gram matrix cannot tell singular values below about 2e-4 of the largest from zero, so it
is formed again in float64 when what would be discarded is that small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.lanczos import LARGE_ENTRIES, dominant_range, orthonormal, outside

GRAM_SIDE = 512
"""Short sides up to this always go through the Gram matrix."""
KRYLOV_SHARE = 8
"""Above that, a Krylov space is built when the bond is at most the short side over this."""
MAX_BLOCKS = 8
"""Blocks of a Krylov space; each costs two passes over the matrix."""
EXCESS = 2e-3
"""What more blocks may still be expected to gain, as a share of the discarded weight: 0.1 % of the error."""
SLOWEST_FALL = 0.3
"""Gains of further blocks are expected to shrink by this factor at best, however fast they shrank so far."""
FLOAT32_FLOOR = 3e-3
"""Relative error below which a float32 Gram matrix is not trusted."""
WELL_CONDITIONED = 1e-6
"""Ratio of squared singular values down to which a float32 Gram matrix of few long rows gives good singular vectors."""
LOST_SHARE = 0.02
"""Share of singular values that may be below that ratio before a float32 spectrum is formed again in float64."""
NORM_RUN = 4096
"""Entries that `squared_norm` adds up in the tensor's own dtype."""
BLOCK_ENTRIES = 2**18
"""Entries of a large matrix that are compared at a time."""
SMALL_NORM, LARGE_NORM = 1e-30, 1e30
"""Squared norms outside of these are not safe to form in float32."""
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
        Musco, Musco 2015, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
        Decomposition", arXiv 1504.05477 (Krylov space).

    Example:
        >>> U, S, V = truncated_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
        >>> [round(s, 4) for s in S.tolist()]
        [3.0, 2.0]
    """
    short = min(matrix.shape)
    bond = short if n_eigenvecs is None else min(n_eigenvecs, short)
    if _by_krylov(short, bond):
        u, s, v = _krylov_svd(matrix, bond)
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
    if _by_krylov(short, bond):
        u, s, v = _krylov_svd(matrix, bond)
        residual = total - squared_norm(s)
        if residual < FLOAT32_FLOOR**2 * total:
            residual = missed(matrix, u, s[:, None] * v)
        return Spectrum(values=s.double().numpy(), residual=residual)
    precise = matrix.double() if short <= GRAM_SIDE else matrix
    eigenvalues = torch.linalg.eigvalsh(_gram(precise))
    if precise.dtype == torch.float32 and _lost_in_rounding(eigenvalues):
        eigenvalues = torch.linalg.eigvalsh(_gram(matrix.double()))
    values = eigenvalues.double().flip(0).clamp_min(0).sqrt().numpy()
    return Spectrum(values=values[:bond], residual=float(np.sum(values[bond:][::-1] ** 2)))


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
    norm = float(torch.dot(runs, runs) + rest * rest)
    if tensor.dtype == torch.float32 and not SMALL_NORM < norm < LARGE_NORM:
        return float(torch.linalg.vector_norm(flat, dtype=torch.float64) ** 2)
    return norm


def missed(
    matrix: Tensor,  # shape: (p, q)
    left: Tensor,  # shape: (p, n)
    right: Tensor,  # shape: (n, q)
) -> float:
    """The squared Frobenius norm of a matrix less a product; of a large one in blocks of rows.

    Args:
        matrix: the matrix.
        left: first factor of the product.
        right: second factor.

    Returns:
        The squared norm of the difference.
    """
    if matrix.numel() <= LARGE_ENTRIES:
        return squared_norm(matrix - left @ right)
    step, squares = max(1, BLOCK_ENTRIES // matrix.shape[1]), 0.0
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        squares += squared_norm(torch.addmm(matrix[rows], left[rows], right, alpha=-1))
    return squares


def _by_krylov(short: int, bond: int) -> bool:
    return short > GRAM_SIDE and bond * KRYLOV_SHARE <= short


def _lost_in_rounding(eigenvalues: Tensor) -> bool:
    """Whether many eigenvalues of a float32 Gram matrix are as small as its rounding errors."""
    lost = eigenvalues < WELL_CONDITIONED * eigenvalues[-1]
    return int(lost.sum()) > LOST_SHARE * len(eigenvalues)


def _gram(matrix: Tensor) -> Tensor:
    """Lower triangle of the Gram matrix of the short side; what stands above it is not defined."""
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    short = len(rows)
    step = max(64, -(-short // 4))
    gram = rows.new_empty(short, short)
    for first in range(0, short, step):
        last = min(first + step, short)
        torch.mm(rows[first:last], rows[:last].T, out=gram[first:last, :last])
    return gram


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


def _krylov_svd(matrix: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triplets inside a block Krylov space, started at random or, for a large matrix, from a sample."""
    if matrix.numel() > LARGE_ENTRIES:
        return _lanczos_svd(matrix, bond)
    generator = torch.Generator().manual_seed(SEED)
    width = min(bond + max(bond // 2, 8), *matrix.shape)
    total = squared_norm(matrix)
    block = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis, coefficients = matrix.new_empty(matrix.shape[0], 0), matrix.new_empty(0, matrix.shape[1])
    captured = [0.0]
    for _ in range(min(MAX_BLOCKS, min(matrix.shape) // width)):
        fresh = orthonormal(matrix @ block)
        fresh = outside(basis, fresh) if len(coefficients) else fresh
        rows = fresh.T @ matrix
        basis, coefficients = torch.cat((basis, fresh), dim=1), torch.cat((coefficients, rows))
        captured.append(float(torch.linalg.eigvalsh((coefficients @ coefficients.T).double())[-bond:].sum()))
        if _converged(captured, total):
            break
        block = orthonormal(rows.T)
    return _from_range(basis, coefficients, bond)


def _lanczos_svd(matrix: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triplets of a large matrix."""
    found = dominant_range(matrix, bond)
    rotation = torch.linalg.eigh((found.images.T @ found.images).double())[1]
    kept = rotation[:, -bond:].flip(1).to(matrix.dtype)
    near, triangle = torch.linalg.qr(found.images @ kept)
    turn, s, turn_back = torch.linalg.svd(triangle)
    near, far = near @ turn, found.basis @ (kept @ turn_back.T)
    return (near, s, far.T) if found.of_rows else (far, s, near.T)


def _converged(captured: list[float], total: float) -> bool:
    """Whether more blocks would gain too little, their gains falling on as they have fallen so far."""
    if len(captured) < 3:
        return False
    before, gain = captured[-2] - captured[-3], captured[-1] - captured[-2]
    falling = min(max(gain / before, SLOWEST_FALL), 0.9) if before > 0 else SLOWEST_FALL
    left = max(total - captured[-1], 1e-12 * total)
    return gain * falling / (1 - falling) <= EXCESS * left


def _from_range(basis: Tensor, coefficients: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of `basis @ coefficients`, the basis orthonormal and the coefficients few and long."""
    values, rotation = torch.linalg.eigh((coefficients @ coefficients.T).double())
    if values[-bond] > WELL_CONDITIONED * values[-1]:
        kept = rotation[:, -bond:].flip(1).to(basis.dtype)
        s = values[-bond:].flip(0).sqrt().to(basis.dtype)
        return basis @ kept, s, (kept.T @ coefficients) / s[:, None]
    long, small = torch.linalg.qr(coefficients.T)
    u, s, v = torch.linalg.svd(small.T, full_matrices=False)
    return basis @ u[:, :bond], s[:bond], v[:bond] @ long.T

"""Fast, seeded, truncated SVD of an unfolding; passed to tensorly as its SVD method.

One of two methods is chosen by size. The Gram matrix of the short side and its eigenvectors: exact, one pass over the
matrix. Or, if the bond is small compared with both sides, a subspace from block Lanczos, grown until the error is
within 0.1 % of the best: a few passes. A float32 Gram matrix cannot resolve singular values below about 2e-4 of the
largest, so it is computed again in float64 if the discarded part is that small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.mpo.lanczos import LARGE_ENTRIES, dominant_range

GRAM_SIDE = 512
"""Longest short side that always uses the Gram matrix."""
LANCZOS_SHARE = 8
"""Above that, block Lanczos is used if the bond is at most the short side divided by this."""
FLOAT32_FLOOR = 3e-3
"""Relative error below which a float32 Gram matrix is too inexact."""
WELL_CONDITIONED = 1e-6
"""Smallest ratio of squared singular values at which a float32 Gram matrix gives accurate singular vectors."""
LOST_SHARE = 0.02
"""Share of singular values below that ratio above which a float32 spectrum is computed again in float64."""
NORM_RUN = 4096
"""Entries that `squared_norm` sums in the dtype of the tensor."""
BLOCK_ENTRIES = 2**18
"""Entries of one block of a large matrix."""
SMALL_NORM, LARGE_NORM = 1e-30, 1e30
"""Limits of squared norms that float32 computes safely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The largest singular values of an unfolding, and the squared norm of the rest.

    Args:
        values: singular values, falling, float64, shape (n,).
        residual: sum of the squares of the other singular values.
    """

    values: NDArray[np.float64]
    residual: float


def truncated_svd(
    matrix: Tensor,  # shape: (p, q)
    n_eigenvecs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the largest singular triplets of a matrix; the signature is that of an SVD method of tensorly.

    Args:
        matrix: a finite float32 or float64 matrix.
        n_eigenvecs: number of triplets; by default, and at most, the short side.

    Returns:
        U of shape (p, n), S of shape (n,), V of shape (n, q). U is orthonormal up to rounding; the largest entry of
        each of its columns is positive. The same matrix gives the same bits.

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
    if _by_lanczos(short, bond):
        u, s, v = _lanczos_svd(matrix, bond)
    else:
        u, s, v = _gram_svd(matrix, bond)
    rows = u.abs().argmax(dim=0)
    signs = torch.where(u[rows, torch.arange(u.shape[1])] < 0, -1.0, 1.0).to(u.dtype)
    return u * signs, s, v * signs[:, None]


def spectrum(
    matrix: Tensor,  # shape: (p, q)
    max_bond: int | None = None,
) -> Spectrum:
    """Compute the singular values of a matrix, as many as bonds up to a cap need.

    Args:
        matrix: a finite float32 or float64 matrix.
        max_bond: the largest bond of interest; None for all values.

    Returns:
        The spectrum; its squared values and its residual add up to the squared Frobenius norm.

    Example:
        >>> spectrum(torch.diag(torch.tensor([1.0, 3.0, 2.0]))).values.round(4).tolist()
        [3.0, 2.0, 1.0]
    """
    short = min(matrix.shape)
    bond = short if max_bond is None else min(max_bond, short)
    if _by_lanczos(short, bond):
        u, s, v = _lanczos_svd(matrix, bond)
        total = squared_norm(matrix)
        residual = total - squared_norm(s)
        if residual < FLOAT32_FLOOR**2 * total:
            residual = squared_residual(matrix, u, s[:, None] * v)
        return Spectrum(values=s.double().numpy(), residual=residual)
    gram = _precise_gram(matrix) if short <= GRAM_SIDE else _gram(matrix)
    eigenvalues = torch.linalg.eigvalsh(gram)
    if gram.dtype == torch.float32 and _lost_in_rounding(eigenvalues):
        eigenvalues = torch.linalg.eigvalsh(_precise_gram(matrix))
    values = eigenvalues.double().flip(0).clamp_min(0).sqrt().numpy()
    return Spectrum(values=values[:bond], residual=float(np.sum(values[bond:][::-1] ** 2)))


def squared_norm(
    tensor: Tensor,  # any shape
) -> float:
    """Compute the squared Frobenius norm, summing short runs in the dtype of the tensor and the runs in float64.

    Args:
        tensor: a float32 or float64 tensor.

    Returns:
        The sum of the squared entries; not finite if an entry is not.

    Example:
        >>> squared_norm(torch.tensor([3.0, 4.0]))
        25.0
    """
    if tensor.numel() > LARGE_ENTRIES and not tensor.is_contiguous():  # flattening it would copy it
        pieces = torch.split(tensor, max(1, BLOCK_ENTRIES * len(tensor) // tensor.numel()))
        return sum(squared_norm(piece.contiguous()) for piece in pieces)
    flat = tensor.reshape(-1)
    whole = flat.numel() // NORM_RUN * NORM_RUN
    runs = torch.linalg.vector_norm(flat[:whole].view(-1, NORM_RUN), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:]).double()
    norm = float(torch.dot(runs, runs) + rest * rest)
    if tensor.dtype == torch.float32 and not SMALL_NORM < norm < LARGE_NORM:
        return float(torch.linalg.vector_norm(flat, dtype=torch.float64) ** 2)
    return norm


def squared_residual(
    matrix: Tensor,  # shape: (p, q)
    left: Tensor,  # shape: (p, n)
    right: Tensor,  # shape: (n, q)
) -> float:
    """Compute the squared Frobenius norm of a matrix minus a product, by blocks of rows if the matrix is large.

    Args:
        matrix: the matrix.
        left: first factor of the product.
        right: second factor.
    """
    if matrix.numel() <= LARGE_ENTRIES:
        return squared_norm(matrix - left @ right)
    step, squares = max(1, BLOCK_ENTRIES // matrix.shape[1]), 0.0
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        squares += squared_norm(torch.addmm(matrix[rows], left[rows], right, alpha=-1))
    return squares


def _by_lanczos(short: int, bond: int) -> bool:
    return short > GRAM_SIDE and bond * LANCZOS_SHARE <= short


def _lost_in_rounding(eigenvalues: Tensor) -> bool:
    """Return whether many eigenvalues of a float32 Gram matrix are as small as its rounding errors."""
    lost = eigenvalues < WELL_CONDITIONED * eigenvalues[-1]
    return int(lost.sum()) > LOST_SHARE * len(eigenvalues)


def _gram(matrix: Tensor) -> Tensor:
    """Compute the lower triangle of the Gram matrix of the short side; the upper triangle is undefined."""
    return _row_gram(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)


def _row_gram(rows: Tensor) -> Tensor:
    """Compute the inner products of the rows, in the lower triangle."""
    short = len(rows)
    step = max(64, -(-short // 4))
    gram = rows.new_empty(short, short)
    for first in range(0, short, step):
        last = min(first + step, short)
        torch.mm(rows[first:last], rows[:last].T, out=gram[first:last, :last])
    return gram


def _precise_gram(matrix: Tensor) -> Tensor:
    """Compute `_gram` in float64, converting a large matrix piece by piece along its long side."""
    if matrix.dtype == torch.float64 or matrix.numel() <= LARGE_ENTRIES:
        return _gram(matrix.double())
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for piece in torch.split(rows, LARGE_ENTRIES // 4 // len(rows) + 1, dim=1):
        gram += _row_gram(piece.double())
    return gram


def _gram_svd(matrix: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute singular triplets from the eigenvectors of the Gram matrix."""
    values, vectors = torch.linalg.eigh(_gram(matrix))
    discarded, total = values[: len(values) - bond].clamp_min(0).sum(), values.sum()
    if matrix.dtype == torch.float32 and discarded <= FLOAT32_FLOOR**2 * total:
        values, vectors = torch.linalg.eigh(_precise_gram(matrix))
        vectors = vectors.to(matrix.dtype)
    basis = vectors[:, -bond:].flip(1)
    if matrix.shape[0] <= matrix.shape[1]:
        return _from_range(basis, basis.T @ matrix, bond)
    u, s, v = _from_range(basis, basis.T @ matrix.T, bond)
    return v.T, s, u.T


def _lanczos_svd(matrix: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute singular triplets within the dominant subspace."""
    subspace = dominant_range(matrix, bond)
    rotation = torch.linalg.eigh((subspace.images.T @ subspace.images).double())[1]
    kept = rotation[:, -bond:].flip(1).to(matrix.dtype)
    near, triangle = torch.linalg.qr(subspace.images @ kept)
    turn, s, turn_back = torch.linalg.svd(triangle)
    near, far = near @ turn, subspace.basis @ (kept @ turn_back.T)
    return (near, s, far.T) if subspace.of_rows else (far, s, near.T)


def _from_range(basis: Tensor, coefficients: Tensor, bond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the SVD of `basis @ coefficients`, for an orthonormal basis and few long rows of coefficients."""
    values, rotation = torch.linalg.eigh((coefficients @ coefficients.T).double())
    if values[-bond] > WELL_CONDITIONED * values[-1]:
        kept = rotation[:, -bond:].flip(1).to(basis.dtype)
        s = values[-bond:].flip(0).sqrt().to(basis.dtype)
        return basis @ kept, s, (kept.T @ coefficients) / s[:, None]
    long, small = torch.linalg.qr(coefficients.T)
    u, s, v = torch.linalg.svd(small.T, full_matrices=False)
    return basis @ u[:, :bond], s[:bond], v[:bond] @ long.T

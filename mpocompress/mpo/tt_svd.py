"""Decompose a matrix into an MPO: the TT-SVD sweep, on tensorly's SVD interface with our own SVD as its method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress.errors import DecompositionError, SitesError
from mpocompress.mpo.contraction import has_row_blocks, row_blocks, to_site_tensor
from mpocompress.mpo.lanczos import LARGE_ENTRIES
from mpocompress.mpo.memory import to_dtype
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import rounded
from mpocompress.mpo.sites import Sites
from mpocompress.mpo.svd import (
    BLOCK_ENTRIES,
    LARGE_NORM,
    SMALL_NORM,
    spectrum,
    squared_norm,
    squared_residual,
    truncated_svd,
)
from mpocompress.mpo.tensorly_backend import tensorly_on_torch
from mpocompress.mpo.truncation import smallest_bond, tail_weights

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

ROUNDING_TRIES = 5
"""How often the bonds are raised if rounding the cores exceeds an error limit."""
SMALL_SHARE = 1e-4
"""A discarded weight below this share of the norm is measured, not computed as a difference of two large numbers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FiniteMatrix:
    """A matrix that can be decomposed, with its squared Frobenius norm.

    Args:
        entries: the matrix, shape (rows, cols), in float16, bfloat16, float32 or float64.
        squared_norm: its squared Frobenius norm; finite.
    """

    entries: Tensor
    squared_norm: float

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, cols = self.entries.shape
        return rows, cols

    @property
    def computed_dtype(self) -> torch.dtype:
        """The dtype to compute in: float32 or float64, and float64 if float32 cannot hold the squares."""
        safe = self.squared_norm == 0.0 or SMALL_NORM < self.squared_norm < LARGE_NORM
        return torch.promote_types(self.entries.dtype, torch.float32) if safe else torch.float64

    def widened(self) -> FiniteMatrix:
        """Return the matrix in the dtype to compute in; a copy only if it has another."""
        return FiniteMatrix(entries=to_dtype(self.entries, self.computed_dtype), squared_norm=self.squared_norm)


def finite_matrix(
    weight: Tensor,  # shape: (rows, cols)
) -> FiniteMatrix:
    """Check that a matrix can be decomposed, and compute its norm.

    Args:
        weight: the matrix, in float16, bfloat16, float32 or float64.

    Returns:
        The matrix in float32 or float64, see `FiniteMatrix.computed_dtype`.

    Raises:
        DecompositionError: not a matrix, not floating, empty, with NaN or Inf or entries too large.

    Example:
        >>> matrix = finite_matrix(torch.ones(2, 2, dtype=torch.bfloat16))
        >>> matrix.entries.dtype, matrix.squared_norm
        (torch.float32, 4.0)
    """
    where = f"matrix {' x '.join(map(str, weight.shape))}"
    if weight.dim() != 2 or weight.numel() == 0 or weight.dtype not in DTYPES:
        raise DecompositionError(
            where=where,
            found=f"a {weight.dim()}-D tensor of {str(weight.dtype).removeprefix('torch.')}",
            why="only a non-empty matrix of floating point numbers can be decomposed",
            action="Pass a 2-D weight in float16, bfloat16, float32 or float64.",
        )
    entries = to_dtype(weight.detach(), torch.promote_types(weight.dtype, torch.float32))
    norm = squared_norm(entries)
    if not math.isfinite(norm):
        broken = int((~torch.isfinite(entries)).sum())
        raise DecompositionError(
            where=where,
            found=f"{broken:,} entries that are NaN or Inf" if broken else "entries above 1e150",
            why="such a matrix has no singular values" if broken else "their squares exceed the range of float64",
            action="Repair the weight, or exclude this layer.",
        )
    return FiniteMatrix(entries=entries, squared_norm=norm).widened()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposition:
    """An MPO, and the weights that the sweep discarded.

    Args:
        mpo: the cores, left-canonical: every core but the last is an isometry.
        discarded_weights: for every cut, the sum of the squared singular values dropped there. Their sum is the squared
            Frobenius error.
        squared_norm: squared Frobenius norm of the dense matrix.
    """

    mpo: MPO
    discarded_weights: tuple[float, ...]
    squared_norm: float

    @property
    def relative_error(self) -> float:
        """Relative Frobenius error, from the discarded weights."""
        return math.sqrt(sum(self.discarded_weights) / self.squared_norm) if self.squared_norm else 0.0


def factorise(
    weight: Tensor | FiniteMatrix,  # shape: (rows, cols)
    sites: Sites,
    *,
    bonds: Sequence[int] | None = None,
    relative_error: float | None = None,
) -> Decomposition:
    """Decompose a matrix by one sweep from the first site to the last, truncating at every cut.

    Args:
        weight: the matrix; a tensor is checked first. Half types are computed in float32.
        sites: the site shape.
        bonds: one bond per cut, or
        relative_error: the smallest bonds with at most this relative Frobenius error of the whole matrix: every cut
            takes an even share of what the cuts before it left.

    Returns:
        The decomposition, with cores in the dtype of the computation (float32 or float64).

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.
        SitesError: sites that do not fit the matrix.

    Source:
        Oseledets 2011, "Tensor-Train Decomposition", algorithm 1, doi:10.1137/090752286.

    Example:
        >>> result = factorise(torch.eye(4), Sites(row_dims=(4, 1), col_dims=(1, 4)), bonds=(3,))
        >>> round(result.relative_error, 6), round(result.discarded_weights[0], 6)
        (0.5, 1.0)
    """
    matrix = _finite(weight)
    check_sites(matrix.shape, sites)
    total = matrix.squared_norm
    allowance = math.inf if relative_error is None else relative_error**2 * total
    dims = sites.dims
    cores: list[Tensor] = []
    discarded: list[float] = []
    rest, rest_weight, left = to_site_tensor(matrix.entries.detach(), sites, matrix.computed_dtype), total, 1
    with tensorly_on_torch() as tensorly:
        for cut in range(len(dims) - 1):
            unfolding = rest.reshape(left * dims[cut], -1)
            if relative_error is None:
                bond = min(*unfolding.shape, bonds[cut] if bonds else max(unfolding.shape))
            else:
                values = spectrum(unfolding)
                share = max(allowance - sum(discarded), 0.0) / (len(dims) - 1 - cut)
                bond = smallest_bond(tail_weights(values.values, values.residual), discarded_budget=share)
            u, s, v = tensorly.tenalg.svd_interface(unfolding, method=truncated_svd, n_eigenvecs=bond, flip_sign=False)
            rest = s[:, None] * v
            kept_weight = squared_norm(s)
            discarded.append(_discarded_weight(unfolding, u, rest, rest_weight - kept_weight, rest_weight))
            rest_weight = kept_weight
            cores.append(u.reshape(left, sites.row_dims[cut], sites.col_dims[cut], bond))
            left = bond
    cores.append(rest.reshape(left, sites.row_dims[-1], sites.col_dims[-1], 1))
    mpo = MPO(cores=tuple(core.contiguous() for core in cores), sites=sites)
    return Decomposition(mpo=mpo, discarded_weights=tuple(discarded), squared_norm=total)


def factorise_within(
    weight: Tensor | FiniteMatrix,  # shape: (rows, cols)
    sites: Sites,
    *,
    relative_error: float,
    stored: torch.dtype,
) -> tuple[Decomposition, MPO, float]:
    """Decompose with the smallest bonds whose error is within a limit after the cores are rounded to their dtype.

    Args:
        weight: the matrix; a tensor is checked first.
        sites: the site shape.
        relative_error: the limit.
        stored: dtype of the stored cores; floating, or int8.

    Returns:
        The decomposition, its MPO as it is read back from the stored dtype, and the relative error measured on that
        MPO; the error exceeds the limit only if no bonds suffice.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.
        SitesError: sites that do not fit the matrix.

    Example:
        >>> _, mpo, error = factorise_within(
        ...     torch.eye(4), Sites(row_dims=(4, 1), col_dims=(1, 4)), relative_error=0.5, stored=torch.float16
        ... )
        >>> mpo.bonds, round(error, 3)
        ((3,), 0.5)
    """
    matrix = _finite(weight)
    allowed = relative_error
    for _ in range(ROUNDING_TRIES):
        result = factorise(matrix, sites, relative_error=allowed)
        mpo = rounded(result.mpo, stored)
        error = measured_error(matrix, mpo)
        if error <= relative_error or not math.isfinite(error):
            break
        # Bonds do not change what rounding adds: leave room for it, and truncate less.
        rounding = error**2 - result.relative_error**2
        allowed = min(math.sqrt(max(relative_error**2 - 1.02 * rounding, 0.0)), 0.999 * allowed)
    return result, mpo, error


def measured_error(
    weight: Tensor | FiniteMatrix,  # shape: (rows, cols)
    mpo: MPO,
) -> float:
    """Measure the relative Frobenius error of an MPO, entry by entry.

    Args:
        weight: the dense matrix; a tensor is checked first.
        mpo: its decomposition, in any dtype; contracted in float32 or float64, by blocks of rows if it is large.

    Returns:
        The Frobenius norm of the difference over that of `weight`; 0 if both are zero.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.

    Example:
        >>> mpo = factorise(torch.eye(4), Sites(row_dims=(4, 1), col_dims=(1, 4)), bonds=(3,)).mpo
        >>> round(measured_error(torch.eye(4), mpo), 6)
        0.5
    """
    matrix = _finite(weight)
    entries, norm, dtype = matrix.entries.detach(), matrix.squared_norm, matrix.computed_dtype
    if entries.numel() > LARGE_ENTRIES and has_row_blocks(mpo.sites):
        blocks = row_blocks(mpo.to(dtype).cores, mpo.sites, BLOCK_ENTRIES)
        squares = sum(
            squared_norm(block.sub_(entries[start : start + len(block)].to(dtype))) for start, block in blocks
        )
    else:
        squares = squared_norm(mpo.to(dtype).to_matrix().sub_(entries.to(dtype)))
    return math.sqrt(squares / norm) if norm else math.sqrt(squares)


def check_sites(shape: tuple[int, int], sites: Sites) -> None:
    """Refuse sites for a matrix of another shape.

    Args:
        shape: (rows, columns) of the matrix.
        sites: the site shape.

    Raises:
        SitesError: sites that do not fit the matrix.
    """
    if sites.shape != shape:
        raise SitesError(
            where=f"matrix {shape[0]} x {shape[1]}",
            found=f"sites for {sites.shape[0]} x {sites.shape[1]}",
            why="the products of the row and column dims must be the shape of the matrix",
            action="Choose dims whose products are its rows and columns.",
        )


def _finite(weight: Tensor | FiniteMatrix) -> FiniteMatrix:
    return weight if isinstance(weight, FiniteMatrix) else finite_matrix(weight)


def _discarded_weight(unfolding: Tensor, u: Tensor, rest: Tensor, difference: float, total: float) -> float:
    """Return the squared Frobenius norm of what a truncation dropped from an unfolding."""
    if len(rest) == min(unfolding.shape):
        return 0.0
    return squared_residual(unfolding, u, rest) if difference < SMALL_SHARE * total else difference

"""Matrix to MPO: the TT-SVD sweep, on tensorly's SVD interface with our own fast SVD as its method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorly as tl
import torch
from tensorly.tenalg import svd_interface
from torch import Tensor

from mpocompress.errors import DecompositionError, SitesError
from mpocompress.mpo.contraction import has_row_blocks, row_blocks, to_site_tensor
from mpocompress.mpo.lanczos import LARGE_ENTRIES
from mpocompress.mpo.memory import to_dtype
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import rounded
from mpocompress.mpo.sites import Sites
from mpocompress.mpo.svd import BLOCK_ENTRIES, LARGE_NORM, SMALL_NORM, missed, spectrum, squared_norm, truncated_svd
from mpocompress.mpo.truncation import choose_bond, tail_weights

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


ROUNDING_TRIES = 5
"""How often bonds are raised when rounding the cores breaks an error target."""


SMALL_SHARE = 1e-4
"""A discarded weight below this share of the norm is measured, not taken as a difference of two large numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposition:
    """An MPO and what the sweep dropped on the way to it.

    Args:
        mpo: the cores, left-canonical: every core but the last is an isometry.
        discarded_weights: for every cut, the sum of the squared singular values dropped there. They add up to the
            squared Frobenius error.
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
    weight: Tensor,  # shape: (rows, cols)
    sites: Sites,
    *,
    bonds: Sequence[int] | None = None,
    relative_error: float | None = None,
    norm: float | None = None,
) -> Decomposition:
    """Sweep a matrix from the first site to the last, truncating every cut.

    Args:
        weight: a finite matrix of a floating dtype; half types are computed in float32.
        sites: the site shape.
        bonds: a bond for every cut, or
        relative_error: the smallest bonds whose relative Frobenius error stays within this, for the whole matrix: every
            cut may use an even share of what the cuts before it left over.
        norm: its squared Frobenius norm, where `computable` found it already; it is then not looked through again.

    Returns:
        The decomposition, cores in the dtype of the computation (float32 or float64).

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
    if norm is None or sites.shape != tuple(weight.shape):
        weight, norm = computable(weight, sites)
    total = norm
    allowance = math.inf if relative_error is None else relative_error**2 * total
    dims = sites.dims
    cores: list[Tensor] = []
    discarded: list[float] = []
    rest, rest_weight, left = to_site_tensor(weight.detach(), sites, _precise(weight.dtype, total)), total, 1
    with tl.backend_context("pytorch", local_threadsafe=True):
        for cut in range(len(dims) - 1):
            unfolding = rest.reshape(left * dims[cut], -1)
            if relative_error is None:
                bond = min(*unfolding.shape, bonds[cut] if bonds else max(unfolding.shape))
            else:
                values = spectrum(unfolding)
                share = max(allowance - sum(discarded), 0.0) / (len(dims) - 1 - cut)
                bond = choose_bond(tail_weights(values.values, values.residual), discarded_budget=share)
            u, s, v = svd_interface(unfolding, method=truncated_svd, n_eigenvecs=bond, flip_sign=False)
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
    weight: Tensor,  # shape: (rows, cols)
    sites: Sites,
    *,
    relative_error: float,
    stored: torch.dtype,
    norm: float | None = None,
) -> tuple[Decomposition, MPO, float]:
    """The smallest bonds whose error stays within a limit once the cores are rounded to the dtype they are stored in.

    Args:
        weight: a finite matrix of a floating dtype.
        sites: the site shape.
        relative_error: what is allowed.
        stored: dtype of the cores; floating, or int8.
        norm: its squared Frobenius norm, where that is known.

    Returns:
        The decomposition, its MPO as it comes back from the stored dtype, and the relative error measured on that; more
        than was allowed only where no bond is enough.

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
    allowed = relative_error
    for _ in range(ROUNDING_TRIES):
        result = factorise(weight, sites, relative_error=allowed, norm=norm)
        mpo = rounded(result.mpo, stored)
        error = measured_error(weight, mpo, norm)
        if error <= relative_error or not math.isfinite(error):
            break
        # What rounding added is no matter of bonds: leave room for it, and truncate less.
        rounding = error**2 - result.relative_error**2
        allowed = min(math.sqrt(max(relative_error**2 - 1.02 * rounding, 0.0)), 0.999 * allowed)
    return result, mpo, error


def measured_error(
    weight: Tensor,  # shape: (rows, cols)
    mpo: MPO,
    norm: float | None = None,
) -> float:
    """Relative Frobenius error of an MPO, measured entry by entry on the matrix it multiplies out to.

    Args:
        weight: the dense matrix.
        mpo: its decomposition, in any dtype; multiplied out in float32 at least, a large one some rows at a time.
        norm: the squared Frobenius norm of `weight`, where `computable` found it already.

    Returns:
        The Frobenius norm of the difference over that of `weight`; 0 for a zero matrix that came out as zero.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.

    Example:
        >>> mpo = factorise(torch.eye(4), Sites(row_dims=(4, 1), col_dims=(1, 4)), bonds=(3,)).mpo
        >>> round(measured_error(torch.eye(4), mpo), 6)
        0.5
    """
    if norm is None:
        weight, norm = computable(weight)
    precise = _precise(weight.dtype, norm)
    if weight.numel() > LARGE_ENTRIES and has_row_blocks(mpo.sites):
        blocks = row_blocks(mpo.to(precise).cores, mpo.sites, BLOCK_ENTRIES)
        squares = sum(
            squared_norm(block.sub_(weight[start : start + len(block)].to(precise))) for start, block in blocks
        )
    else:
        squares = squared_norm(mpo.to(precise).to_matrix().sub_(weight.detach().to(precise)))
    return math.sqrt(squares / norm) if norm else math.sqrt(squares)


def _precise(dtype: torch.dtype, norm: float) -> torch.dtype:
    """The dtype to compute in: float32 at least, float64 where squares would not fit into that."""
    safe = norm == 0.0 or SMALL_NORM < norm < LARGE_NORM
    return torch.promote_types(dtype, torch.float32) if safe else torch.float64


def _discarded_weight(unfolding: Tensor, u: Tensor, rest: Tensor, difference: float, total: float) -> float:
    """The squared Frobenius norm of what a truncation left out of an unfolding."""
    if len(rest) == min(unfolding.shape):
        return 0.0
    return missed(unfolding, u, rest) if difference < SMALL_SHARE * total else difference


def computable(
    weight: Tensor,  # shape: (rows, cols)
    sites: Sites | None = None,
) -> tuple[Tensor, float]:
    """A matrix in the dtype it is decomposed in, checked.

    Args:
        weight: a matrix.
        sites: site dims that it must fit; None to check the matrix alone.

    Returns:
        The matrix in float32, or in float64 where its entries are that or too large or small to be squared in float32;
        and its squared Frobenius norm.

    Raises:
        DecompositionError: not a matrix, not floating, empty, with NaN or Inf or entries too large.
        SitesError: sites for another shape.

    Example:
        >>> matrix, norm = computable(torch.ones(2, 2, dtype=torch.bfloat16))
        >>> matrix.dtype, norm
        (torch.float32, 4.0)
    """
    where = f"matrix {' x '.join(map(str, weight.shape))}"
    if weight.dim() != 2 or weight.numel() == 0 or weight.dtype not in DTYPES:
        raise DecompositionError(
            where=where,
            found=f"a {weight.dim()}-D tensor of {str(weight.dtype).removeprefix('torch.')}",
            why="an MPO is made of a non-empty matrix of floating point numbers",
            action="Give a 2-D weight in float16, bfloat16, float32 or float64.",
        )
    if sites is not None and sites.shape != tuple(weight.shape):
        raise SitesError(
            where=where,
            found=f"sites for {sites.shape[0]} x {sites.shape[1]}",
            why="the products of the row and column dims are the sides of the matrix",
            action="Choose dims whose products are its sides.",
        )
    matrix = to_dtype(weight.detach(), torch.promote_types(weight.dtype, torch.float32))
    norm = squared_norm(matrix)
    if not math.isfinite(norm):
        broken = int((~torch.isfinite(matrix)).sum())
        raise DecompositionError(
            where=where,
            found=f"{broken:,} entries that are NaN or Inf" if broken else "entries above 1e150",
            why="singular values of such a matrix do not exist" if broken else "their squares do not fit into float64",
            action="Repair the weight, or leave this layer out.",
        )
    return matrix.to(_precise(weight.dtype, norm)), norm

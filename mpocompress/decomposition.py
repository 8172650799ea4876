"""Matrix to MPO: the TT-SVD sweep, on tensorly's SVD interface with our own fast SVD as its method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorly as tl
import torch
from numpy.typing import NDArray
from tensorly.tenalg import svd_interface
from torch import Tensor

from mpocompress.contraction import has_row_blocks, row_blocks, to_dtype, to_site_tensor
from mpocompress.curve import Curve, best_under_cap, best_under_error, best_under_parameters
from mpocompress.errors import DecompositionError, SitesError, TargetError
from mpocompress.lanczos import LARGE_ENTRIES
from mpocompress.mpo import MPO
from mpocompress.quantised import rounded
from mpocompress.sites import Sites, SitesChoice, candidates, low_rank
from mpocompress.svd import BLOCK_ENTRIES, LARGE_NORM, SMALL_NORM, missed, spectrum, squared_norm, truncated_svd
from mpocompress.truncation import Truncation, choose_bond, tail_weights

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


def decompose(
    weight: Tensor,  # shape: (rows, cols)
    *,
    truncation: Truncation,
    sites: Sites | SitesChoice = "auto",
) -> MPO:
    """Decompose one matrix into a matrix product operator.

    Args:
        weight: a finite matrix of a floating dtype; half types are computed in float32.
        truncation: what to reach. `keep` and `max_params` count the parameters of this matrix.
        sites: a site shape, `auto` (the best candidate), `lowrank`, or a number of balanced sites.

    Returns:
        The MPO, its cores in the dtype of `weight`. It may have more parameters than the matrix: nothing is kept dense
        here.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.
        SitesError: sites that do not fit the matrix.
        TargetError: a target that no site shape can meet, or an error that its dtype is too coarse for.

    Example:
        >>> weight = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
        >>> mpo = decompose(weight, truncation=Truncation(max_bond=1), sites="lowrank")
        >>> mpo.bonds, mpo.parameters, bool(torch.allclose(mpo.to_matrix(), weight))
        ((1,), 14, True)
    """
    matrix, _ = computable(weight)
    rows, cols = matrix.shape
    shapes = (sites,) if isinstance(sites, Sites) else candidates(rows, cols, sites)
    budget = truncation.error_budget
    limit = None
    if truncation.kind == "max_params":
        limit = truncation.max_params
    elif truncation.keep is not None:
        limit = int(truncation.keep * matrix.numel())
    if budget is None and limit is None:
        cap = truncation.bond_cap("weight") or min(rows, cols)
        curves = survey(matrix, shapes, max_bond=cap) if len(shapes) > 1 else ()
        shape = (best_under_cap(curves, cap) or curves[0]).sites if curves else shapes[0]
        return factorise(matrix, shape, bonds=shape.capped(cap)).mpo.to(weight.dtype)
    curves = survey(matrix, shapes)
    if budget is not None:
        shape = (best_under_error(curves, budget) or curves[0]).sites
        _, mpo, error = factorise_within(weight, shape, relative_error=budget, stored=weight.dtype)
        if error > budget:
            raise TargetError(
                where=f"matrix {rows} x {cols}",
                found=f"a relative error of {error:.2g} at the largest bonds, at most {budget:.2g} asked for",
                why=f"cores in {str(weight.dtype).removeprefix('torch.')} hold no more digits",
                action="Allow a larger error, or give the weight in a wider dtype.",
            )
        return mpo
    best = best_under_parameters(curves, limit or 0)
    if best is None:
        raise TargetError(
            where=f"matrix {rows} x {cols}",
            found=f"at most {limit:,} parameters asked for",
            why=f"bond 1 already needs {min(s.parameters(s.capped(1)) for s in shapes):,} in the best shape",
            action="Ask for more parameters, or for more sites.",
        )
    curve, cap = best
    return factorise(matrix, curve.sites, bonds=curve.sites.capped(cap)).mpo.to(weight.dtype)


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


def survey(
    weight: Tensor,  # shape: (rows, cols)
    shapes: Sequence[Sites],
    *,
    max_bond: int | None = None,
    member_columns: Sequence[int] = (),
    norm: float | None = None,
) -> tuple[Curve, ...]:
    """What each site shape would cost and lose, for every bond up to a cap, without making any core.

    Args:
        weight: a finite matrix of a floating dtype.
        shapes: the site shapes.
        max_bond: the largest bond of interest; None for all.
        member_columns: columns of each member of a joint matrix; in the low-rank shape, whose bonds reach all of them
            alike, each is then followed by itself as well.
        norm: its squared Frobenius norm, where `computable` gave both; it is then not looked through again.

    Returns:
        One curve for every shape, in the same order.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.
        SitesError: sites that do not fit the matrix.

    Example:
        >>> (curve,) = survey(torch.eye(4), [Sites(row_dims=(4, 1), col_dims=(1, 4))])
        >>> round(curve.error((3,)), 6)
        0.5
    """
    curves = []
    for shape in shapes:
        matrix, total = computable(weight, shape) if norm is None else (weight, norm)
        if len(member_columns) > 1 and shape == low_rank(*shape.shape):
            curves.append(_joint_curve(matrix, shape, max_bond, member_columns))
            continue
        tensor, dims = to_site_tensor(matrix, shape), shape.dims
        spectra = [spectrum(tensor.reshape(math.prod(dims[:cut]), -1), max_bond) for cut in range(1, len(dims))]
        tails = tuple(tail_weights(found.values, found.residual) / (total or 1.0) for found in spectra)
        curves.append(Curve(sites=shape, tails=tails))
    return tuple(curves)


def _joint_curve(matrix: Tensor, shape: Sites, max_bond: int | None, member_columns: Sequence[int]) -> Curve:
    """The curve of a joint matrix as a low-rank product, its members followed one by one."""
    _, s, v = truncated_svd(matrix, max_bond)
    rest, parts = s[:, None] * v, list(member_columns)
    members = tuple(
        _shares(torch.linalg.vector_norm(kept, dim=1), squared_norm(member))
        for member, kept in zip(torch.split(matrix, parts, dim=1), torch.split(rest, parts, dim=1), strict=True)
    )
    return Curve(sites=shape, tails=(_shares(s, squared_norm(matrix)),), member_tails=members)


def _shares(values: Tensor, total: float) -> NDArray[np.float64]:
    """The share of a squared norm that each bond discards, from what each singular direction holds of it."""
    held = values.double().numpy()
    return tail_weights(held, total - float(np.sum(held[::-1] ** 2))) / (total or 1.0)


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
        >>> mpo = decompose(torch.eye(4), truncation=Truncation(max_bond=3), sites="lowrank")
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

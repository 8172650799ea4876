"""Matrix to MPO: the TT-SVD sweep, on tensorly's SVD interface with our own fast SVD as its method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorly as tl
import torch
from tensorly.tenalg import svd_interface
from torch import Tensor

from mpocompress.contraction import to_site_tensor
from mpocompress.curve import Curve, best_under_cap, best_under_error, best_under_parameters
from mpocompress.errors import DecompositionError, TargetError
from mpocompress.mpo import MPO
from mpocompress.sites import Sites, SitesChoice, candidates
from mpocompress.svd import spectrum, squared_norm, truncated_svd
from mpocompress.truncation import Truncation, choose_bond, tail_weights

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
        TargetError: a target that no site shape can meet.

    Example:
        >>> weight = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
        >>> mpo = decompose(weight, truncation=Truncation(max_bond=1), sites="lowrank")
        >>> mpo.bonds, mpo.parameters, bool(torch.allclose(mpo.to_matrix(), weight))
        ((1,), 14, True)
    """
    matrix, _ = _computable(weight)
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
        return factorise(matrix, shape, relative_error=budget).mpo.to(weight.dtype)
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
) -> Decomposition:
    """Sweep a matrix from the first site to the last, truncating every cut.

    Args:
        weight: a finite matrix of a floating dtype; half types are computed in float32.
        sites: the site shape.
        bonds: a bond for every cut, or
        relative_error: the smallest bonds whose relative Frobenius error stays within this, for the whole matrix: every
            cut may use an even share of what the cuts before it left over.

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
    matrix, total = _computable(weight, sites)
    allowance = math.inf if relative_error is None else relative_error**2 * total
    dims = sites.dims
    cores: list[Tensor] = []
    discarded: list[float] = []
    rest, rest_weight, left = to_site_tensor(matrix, sites), total, 1
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


def survey(
    weight: Tensor,  # shape: (rows, cols)
    shapes: Sequence[Sites],
    *,
    max_bond: int | None = None,
) -> tuple[Curve, ...]:
    """What each site shape would cost and lose, for every bond up to a cap, without making any core.

    Args:
        weight: a finite matrix of a floating dtype.
        shapes: the site shapes.
        max_bond: the largest bond of interest; None for all.

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
        matrix, total = _computable(weight, shape)
        tensor, dims = to_site_tensor(matrix, shape), shape.dims
        spectra = [spectrum(tensor.reshape(math.prod(dims[:cut]), -1), max_bond) for cut in range(1, len(dims))]
        tails = tuple(tail_weights(found.values, found.residual) / (total or 1.0) for found in spectra)
        curves.append(Curve(sites=shape, tails=tails))
    return tuple(curves)


def relative_error(
    weight: Tensor,  # shape: (rows, cols)
    mpo: MPO,
) -> float:
    """Relative Frobenius error of an MPO, measured entry by entry on the matrix it multiplies out to.

    Args:
        weight: the dense matrix.
        mpo: its decomposition, in any dtype; multiplied out in float32 at least.

    Returns:
        The Frobenius norm of the difference over that of `weight`; 0 for a zero matrix that came out as zero.

    Example:
        >>> mpo = decompose(torch.eye(4), truncation=Truncation(max_bond=3), sites="lowrank")
        >>> round(relative_error(torch.eye(4), mpo), 6)
        0.5
    """
    precise = torch.promote_types(weight.dtype, torch.float32)
    matrix = weight.to(precise)
    norm = squared_norm(matrix)
    missed = squared_norm(mpo.to(precise).to_matrix().sub_(matrix))
    return math.sqrt(missed / norm) if norm else math.sqrt(missed)


def _discarded_weight(unfolding: Tensor, u: Tensor, rest: Tensor, difference: float, total: float) -> float:
    """The squared Frobenius norm of what a truncation left out of an unfolding."""
    if len(rest) == min(unfolding.shape):
        return 0.0
    return squared_norm(unfolding - u @ rest) if difference < SMALL_SHARE * total else difference


def _computable(weight: Tensor, sites: Sites | None = None) -> tuple[Tensor, float]:
    """The matrix in the dtype of the computation, checked, and its squared norm."""
    where = f"matrix {' x '.join(map(str, weight.shape))}"
    if weight.dim() != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise DecompositionError(
            where=where,
            found=f"a {weight.dim()}-D tensor of {str(weight.dtype).removeprefix('torch.')}",
            why="an MPO is made of a non-empty matrix of floating point numbers",
            action="Give a 2-D weight in float16, bfloat16, float32 or float64.",
        )
    if sites is not None and sites.shape != tuple(weight.shape):
        raise DecompositionError(
            where=where,
            found=f"sites for {sites.shape[0]} x {sites.shape[1]}",
            why="the products of the row and column dims are the sides of the matrix",
            action="Choose dims whose products are its sides.",
        )
    matrix = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    norm = squared_norm(matrix)
    if not math.isfinite(norm):
        raise DecompositionError(
            where=where,
            found=f"{int((~torch.isfinite(matrix)).sum()):,} entries that are NaN or Inf",
            why="singular values of such a matrix do not exist",
            action="Repair the weight, or leave this layer out.",
        )
    return matrix, norm

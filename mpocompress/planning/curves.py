"""Error curves: parameters and error of a matrix in one site shape for every bond, and the best shape for a target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.mpo.contraction import to_site_tensor
from mpocompress.mpo.sites import Sites, low_rank
from mpocompress.mpo.svd import spectrum, squared_norm, truncated_svd
from mpocompress.mpo.truncation import smallest_bond, tail_weights
from mpocompress.mpo.tt_svd import FiniteMatrix, check_sites, finite_matrix

TIE = 1e-3
"""Shapes whose figures differ by less than this share are a tie, and the first (fastest) one wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCurve:
    """Errors of one matrix in one site shape.

    Args:
        sites: the site shape.
        tails: for every cut, the weight discarded by each bond as a share of the squared norm; shape (bonds + 1,),
            where entry `b` is for bond `b`. They may end at a cap; errors of larger bonds are then unknown.
        member_tails: for a joint matrix in the low-rank shape, the same for each member, as a share of its own squared
            norm; empty if unknown.
        losses: loss of the model's outputs under every cap from 1 to `max_cap`, measured with calibration data; empty
            if it was not measured.

    Example:
        >>> curve = ErrorCurve(sites=low_rank(4, 4), tails=(np.array([1.0, 0.2, 0.05, 0.01, 0.0]),))
        >>> round(curve.error((2,)), 4), curve.bonds_for_error(0.3)
        (0.2236, (2,))
    """

    sites: Sites
    tails: tuple[NDArray[np.float64], ...]
    member_tails: tuple[NDArray[np.float64], ...] = ()
    losses: NDArray[np.float64] = field(default_factory=partial(np.empty, 0))

    @property
    def dense_parameters(self) -> int:
        """Number of entries of the dense matrix."""
        return self.sites.shape[0] * self.sites.shape[1]

    @property
    def known_cap(self) -> int:
        """The largest cap with a known error."""
        return max(len(tail) - 1 for tail in self.tails)

    @property
    def max_cap(self) -> int:
        """The largest known cap that makes the matrix smaller; 0 if none does."""
        return self.cap_for_parameters(self.dense_parameters - 1)

    def error(self, bonds: Sequence[int]) -> float:
        """Return the relative Frobenius error with these bonds: exact for one cut, an upper bound for several.

        Args:
            bonds: one bond per cut.

        Source:
            Oseledets 2011, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33(5), doi:10.1137/090752286.
        """
        weight = sum(float(tail[min(bond, len(tail) - 1)]) for tail, bond in zip(self.tails, bonds, strict=True))
        return math.sqrt(min(1.0, weight))

    def table(self, members: int = 1) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return parameters and squared relative errors under every cap from 1 to `max_cap`.

        Args:
            members: number of tensors in the matrix.

        Returns:
            Parameters, shape (max_cap,), and the squared relative error of each member, shape (members, max_cap). If
            the errors of the members are unknown, each has that of the whole matrix. See `error` for the exactness.
        """
        bonds, parameters = _costs(self.sites, self.max_cap)
        squares = np.zeros(len(parameters))
        for tail, bond in zip(self.tails, bonds, strict=True):
            squares += tail[np.minimum(bond, len(tail) - 1)]
        if self.member_tails:
            caps = np.arange(1, len(parameters) + 1)
            return parameters, np.stack([np.minimum(tail[caps], 1.0) for tail in self.member_tails])
        return parameters, np.tile(np.minimum(squares, 1.0), (members, 1))

    def cap_for_parameters(self, parameters: int) -> int:
        """Return the largest known cap with at most so many parameters; 0 if bond 1 already has more."""
        return _cap_within(self.sites, self.known_cap, parameters)

    def bonds_for_error(self, relative_error: float) -> tuple[int, ...]:
        """Return the smallest bonds within a relative error (see `error`), of which every cut gets an even share."""
        share = relative_error**2 / len(self.tails)
        return tuple(smallest_bond(tail, discarded_budget=share) for tail in self.tails)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCurves:
    """The error curves of one matrix, one per candidate site shape.

    Args:
        curves: the curves, the shape that runs fastest first; empty if no shape fits.
        squared_norm: squared Frobenius norm of the matrix.
        problem: why the matrix cannot be decomposed; empty if it can.
    """

    curves: tuple[ErrorCurve, ...]
    squared_norm: float
    problem: str = ""


def error_curves(
    weight: Tensor | FiniteMatrix,  # shape: (rows, cols)
    shapes: Sequence[Sites],
    *,
    max_bond: int | None = None,
    member_columns: Sequence[int] = (),
) -> tuple[ErrorCurve, ...]:
    """Compute the error of a matrix in each site shape for every bond up to a cap, without computing cores.

    Args:
        weight: the matrix; a tensor is checked first.
        shapes: the site shapes.
        max_bond: the largest bond of interest; None for all.
        member_columns: columns of each member of a joint matrix, to compute the errors of the members as well in the
            low-rank shape, in which every bond reaches all members.

    Returns:
        One curve per shape, in the same order.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.
        SitesError: sites that do not fit the matrix.

    Example:
        >>> (curve,) = error_curves(torch.eye(4), [Sites(row_dims=(4, 1), col_dims=(1, 4))])
        >>> round(curve.error((3,)), 6)
        0.5
    """
    matrix = weight.widened() if isinstance(weight, FiniteMatrix) else finite_matrix(weight)
    curves = []
    for shape in shapes:
        check_sites(matrix.shape, shape)
        if len(member_columns) > 1 and shape == low_rank(*shape.shape):
            curves.append(_joint_curve(matrix.entries, shape, max_bond, member_columns))
            continue
        tensor, dims = to_site_tensor(matrix.entries, shape), shape.dims
        spectra = [spectrum(tensor.reshape(math.prod(dims[:cut]), -1), max_bond) for cut in range(1, len(dims))]
        norm = matrix.squared_norm or 1.0
        tails = tuple(tail_weights(values.values, values.residual) / norm for values in spectra)
        curves.append(ErrorCurve(sites=shape, tails=tails))
    return tuple(curves)


def _joint_curve(matrix: Tensor, shape: Sites, max_bond: int | None, member_columns: Sequence[int]) -> ErrorCurve:
    """Compute the curve of a joint matrix in the low-rank shape, with the errors of its members."""
    _, s, v = truncated_svd(matrix, max_bond)
    directions, columns = s[:, None] * v, list(member_columns)
    members = tuple(
        _shares(torch.linalg.vector_norm(part, dim=1), squared_norm(member))
        for member, part in zip(
            torch.split(matrix, columns, dim=1), torch.split(directions, columns, dim=1), strict=True
        )
    )
    return ErrorCurve(sites=shape, tails=(_shares(s, squared_norm(matrix)),), member_tails=members)


def _shares(values: Tensor, total: float) -> NDArray[np.float64]:
    """Return the share of a squared norm that each bond discards, from the norms along each singular direction."""
    norms = values.double().numpy()
    return tail_weights(norms, total - float(np.sum(norms[::-1] ** 2))) / (total or 1.0)


def unknown_curve(sites: Sites) -> ErrorCurve:
    """Return the curve of a matrix that was not surveyed: error 1 at every bond.

    Args:
        sites: the site shape.

    Example:
        >>> unknown_curve(low_rank(4, 4)).error((2,))
        1.0
    """
    return ErrorCurve(sites=sites, tails=(np.array([1.0]),) * (len(sites.dims) - 1))


def competing_shapes(shapes: Sequence[Sites], max_bond: int) -> tuple[Sites, ...]:
    """Return the site shapes that a bond cap chooses from: those of the fewest sites that make the matrix smaller.

    At the same cap more sites have several times the parameters, so their errors cannot be compared.

    Args:
        shapes: site shapes of one matrix.
        max_bond: the cap.

    Returns:
        Some of the shapes, in the same order; none if none makes the matrix smaller.
    """
    fewest = min((len(shape.dims) for shape in shapes), default=0)
    return tuple(
        shape
        for shape in shapes
        if len(shape.dims) == fewest and shape.parameters(shape.capped(max_bond)) < math.prod(shape.shape)
    )


def best_under_cap(curves: Sequence[ErrorCurve], max_bond: int) -> ErrorCurve | None:
    """Return the curve with the smallest error under a bond cap, among those that compete.

    Args:
        curves: the candidates, fastest first.
        max_bond: the cap.

    Returns:
        The curve; None if none makes the matrix smaller.
    """
    shapes = competing_shapes([curve.sites for curve in curves], max_bond)
    smaller = [curve for curve in curves if curve.sites in shapes]
    return _first_least(smaller, [curve.error(curve.sites.capped(max_bond)) for curve in smaller])


def best_within_error(curves: Iterable[ErrorCurve], relative_error: float) -> ErrorCurve | None:
    """Return the curve with the fewest parameters within a relative error.

    Args:
        curves: the candidates, fastest first.
        relative_error: the limit.

    Returns:
        The curve; None if every shape needs at least as many parameters as the dense matrix.
    """
    fits = [
        (curve, float(curve.sites.parameters(curve.bonds_for_error(relative_error))))
        for curve in curves
        if curve.error(curve.bonds_for_error(relative_error)) <= relative_error * (1 + 1e-9)
    ]
    fits = [(curve, cost) for curve, cost in fits if cost < curve.dense_parameters]
    return _first_least([curve for curve, _ in fits], [cost for _, cost in fits])


def best_under_parameters(curves: Iterable[ErrorCurve], parameters: int) -> tuple[ErrorCurve, int] | None:
    """Return the curve and cap with the smallest error under a parameter limit.

    Args:
        curves: the candidates, fastest first.
        parameters: the limit.

    Returns:
        The curve and its cap; None if no shape fits.
    """
    fits = [(curve, curve.cap_for_parameters(parameters)) for curve in curves]
    fits = [(curve, cap) for curve, cap in fits if cap > 0]
    best = _first_least([curve for curve, _ in fits], [curve.error(curve.sites.capped(cap)) for curve, cap in fits])
    return next((fit for fit in fits if fit[0] is best), None)


@lru_cache(maxsize=1024)
def _cap_within(sites: Sites, largest: int, parameters: int) -> int:
    """Return the largest cap, up to `largest`, whose MPO has at most so many parameters; by bisection."""
    low, high = 0, largest
    while low < high:
        middle = (low + high + 1) // 2
        if sites.parameters(sites.capped(middle)) <= parameters:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache(maxsize=64)
def _costs(sites: Sites, max_cap: int) -> tuple[tuple[NDArray[np.int64], ...], NDArray[np.int64]]:
    """Return the bonds of every cut, and the parameters, under every cap; cached, as matrices often share a shape."""
    caps = np.arange(1, max_cap + 1)
    ones = np.ones_like(caps)
    bonds = [ones, *(np.minimum(caps, bond) for bond in sites.max_bonds), ones]
    parameters = np.zeros_like(caps)
    for left, dim, right in zip(bonds, sites.dims, bonds[1:], strict=False):
        parameters += left * dim * right
    parameters.flags.writeable = False
    return tuple(bonds[1:-1]), parameters


def _first_least(curves: Sequence[ErrorCurve], figures: Sequence[float]) -> ErrorCurve | None:
    """Return the first curve whose figure is the smallest; figures within `TIE` are equal."""
    limit = min(figures, default=0.0) * (1 + TIE)
    return next((curve for curve, figure in zip(curves, figures, strict=True) if figure <= limit), None)

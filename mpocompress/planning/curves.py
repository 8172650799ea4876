"""What a matrix costs and loses in one site shape, for every bond: the curve from which bonds are chosen."""

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
from mpocompress.mpo.truncation import choose_bond, tail_weights
from mpocompress.mpo.tt_svd import computable


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


TIE = 1e-3
"""Shapes whose figures differ by less than this share are a tie, and the first (fastest) one wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One matrix in one site shape.

    Args:
        sites: the site shape.
        tails: for every cut, the weight discarded by each bond as a share of the squared norm; shape (bonds + 1,),
            entry `b` belongs to bond `b`. They may stop at a cap; larger bonds are then not known.
        member_tails: for a joint matrix in two sites, the same for each member alone, as a share of its own squared
            norm; empty where that is not known.
        losses: what the model loses under every cap from 1 to `max_cap`, as measured with data; empty where it was not.

    Example:
        >>> from mpocompress.mpo.sites import low_rank
        >>> curve = Curve(sites=low_rank(4, 4), tails=(np.array([1.0, 0.2, 0.05, 0.01, 0.0]),))
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
        """The largest cap that this curve knows about."""
        return max(len(tail) - 1 for tail in self.tails)

    @property
    def max_cap(self) -> int:
        """The largest known cap that still makes the matrix smaller; 0 when none does."""
        return self.cap_for_parameters(self.dense_parameters - 1)

    def error(self, bonds: Sequence[int]) -> float:
        """Relative error with these bonds: exact for one cut, an upper bound for several.

        Args:
            bonds: one bond for every cut.

        Returns:
            The relative Frobenius error, at most 1.

        Source:
            Oseledets 2011, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33(5), doi:10.1137/090752286.
        """
        weight = sum(float(tail[min(bond, len(tail) - 1)]) for tail, bond in zip(self.tails, bonds, strict=True))
        return math.sqrt(min(1.0, weight))

    def table(self, members: int = 1) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Parameters and squared relative errors under every cap from 1 to `max_cap`.

        Args:
            members: tensors in the matrix.

        Returns:
            Parameters, shape (max_cap,), and the squared relative error of each member, shape (members, max_cap); that
            of the whole matrix stands for members that are not known alone. See `error` for how exact it is.
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
        """The largest known cap whose MPO has at most so many parameters.

        Args:
            parameters: the limit.

        Returns:
            The cap; 0 when even bond 1 needs more.
        """
        return _cap_within(self.sites, self.known_cap, parameters)

    def bonds_for_error(self, relative_error: float) -> tuple[int, ...]:
        """Bonds that keep a relative error, the allowance shared evenly over the cuts.

        Args:
            relative_error: what is allowed.

        Returns:
            The smallest bonds whose error (see `error`) is within it.
        """
        share = relative_error**2 / len(self.tails)
        return tuple(choose_bond(tail, discarded_budget=share) for tail in self.tails)


def unknown(sites: Sites) -> Curve:
    """The curve of a matrix nobody looked at: any bond may lose all of it.

    Args:
        sites: the site shape.

    Returns:
        The curve, known up to no bond at all.

    Example:
        >>> from mpocompress.mpo.sites import low_rank
        >>> unknown(low_rank(4, 4)).error((2,))
        1.0
    """
    return Curve(sites=sites, tails=(np.array([1.0]),) * (len(sites.dims) - 1))


def competing(shapes: Sequence[Sites], max_bond: int) -> tuple[Sites, ...]:
    """The site shapes that a bond cap chooses from: those that make the matrix smaller, of the fewest sites.

    At the same cap more sites cost several times the parameters, so their smaller error would say nothing.

    Args:
        shapes: site shapes of one matrix.
        max_bond: the cap.

    Returns:
        Some of them, in the same order; none when none makes the matrix smaller.
    """
    fewest = min((len(one.dims) for one in shapes), default=0)
    return tuple(
        one for one in shapes if len(one.dims) == fewest and one.parameters(one.capped(max_bond)) < math.prod(one.shape)
    )


def best_under_cap(curves: Sequence[Curve], max_bond: int) -> Curve | None:
    """The shape with the smallest error under a bond cap, among those that compete.

    Args:
        curves: candidates, fastest first.
        max_bond: the cap.

    Returns:
        The curve, or None when none makes the matrix smaller.
    """
    shapes = competing([curve.sites for curve in curves], max_bond)
    smaller = [curve for curve in curves if curve.sites in shapes]
    return _least(smaller, [curve.error(curve.sites.capped(max_bond)) for curve in smaller])


def best_under_error(curves: Iterable[Curve], relative_error: float) -> Curve | None:
    """The shape that keeps a relative error with the fewest parameters, fewer than the dense matrix.

    Args:
        curves: candidates, fastest first.
        relative_error: what is allowed.

    Returns:
        The curve, or None when every shape needs at least as many parameters as the dense matrix.
    """
    fits = [
        (curve, float(curve.sites.parameters(curve.bonds_for_error(relative_error))))
        for curve in curves
        if curve.error(curve.bonds_for_error(relative_error)) <= relative_error * (1 + 1e-9)
    ]
    fits = [(curve, cost) for curve, cost in fits if cost < curve.dense_parameters]
    return _least([curve for curve, _ in fits], [cost for _, cost in fits])


def best_under_parameters(curves: Iterable[Curve], parameters: int) -> tuple[Curve, int] | None:
    """The shape and cap with the smallest error under a parameter limit.

    Args:
        curves: candidates, fastest first.
        parameters: the limit.

    Returns:
        The curve and its cap, or None when no shape fits.
    """
    fits = [(curve, curve.cap_for_parameters(parameters)) for curve in curves]
    fits = [(curve, cap) for curve, cap in fits if cap > 0]
    best = _least([curve for curve, _ in fits], [curve.error(curve.sites.capped(cap)) for curve, cap in fits])
    return next((fit for fit in fits if fit[0] is best), None)


@lru_cache(maxsize=1024)
def _cap_within(sites: Sites, largest: int, parameters: int) -> int:
    """The largest cap, up to one, whose MPO has at most so many parameters."""
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
    """The bonds of every cut, and the parameters, under every cap; a model has many matrices of one shape."""
    caps = np.arange(1, max_cap + 1)
    ones = np.ones_like(caps)
    bonds = [ones, *(np.minimum(caps, bond) for bond in sites.max_bonds), ones]
    parameters = np.zeros_like(caps)
    for left, dim, right in zip(bonds, sites.dims, bonds[1:], strict=False):
        parameters += left * dim * right
    parameters.flags.writeable = False
    return tuple(bonds[1:-1]), parameters


def _least(curves: Sequence[Curve], figures: Sequence[float]) -> Curve | None:
    """The first curve whose figure is the least, ties within `TIE` counted as equal."""
    limit = min(figures, default=0.0) * (1 + TIE)
    return next((curve for curve, figure in zip(curves, figures, strict=True) if figure <= limit), None)

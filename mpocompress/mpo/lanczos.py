"""A few directions that hold nearly all of a large matrix: block Lanczos, started from a sample of its rows.

What counts for a large matrix is how often it is multiplied. Every step here is one product with a thin block, from
the left and from the right in turn, and after every step it is known how much of the matrix has been found. The start
is not random: a sample of the rows, drawn with the energy they hold, is worth two or three steps and costs half of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGE_ENTRIES = 2**22
"""Matrices of more entries than this are treated as large: a pass over them is what costs time and memory."""
MAX_STEPS = 16
"""Steps at most; each is one pass over the matrix."""
EXCESS = 1e-3
"""What more steps may still be expected to gain, as a share of the discarded weight; half of what is allowed, since the
gains of flat spectra fall more and more slowly."""
STEEPEST_FALL, FLATTEST_FALL = 0.3, 0.95
"""Gains of further steps are expected to shrink by a factor between these, whatever they did so far."""
FLAT, STEEPEST_FALL_OF_FLAT = 0.5, 0.55
"""The first of the two where the last gain was more than this share of the one before: what comes now is flat."""
CLEAR_FALL, NEARLY_SQUARE = 0.17, 2
"""A last gain of less than this share of the one before may end the search after four steps, where the long side is
less than twice the short one: in noise of a longer shape, gains from the left and from the right differ as much."""
BLOCK = 16
"""Block widths are multiples of this: a product with a thinner block takes as long."""
SAMPLE_SHARE = 8
"""The sample takes one row in so many."""
SAMPLE_ROUNDS = 2
NOTHING_NEW = 1e-4
"""A direction of which less than this lies outside of the subspace before is replaced by a random one."""
MAX_TRIES = 5
SEED = 20121194


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Range:
    """A subspace of the columns or of the rows of a matrix, and what the matrix makes of it.

    Args:
        basis: orthonormal columns.
        images: `matrix @ basis` where the subspace is one of rows, else `matrix.T @ basis`.
        of_rows: which it is.
    """

    basis: Tensor
    images: Tensor
    of_rows: bool


def dominant_range(
    matrix: Tensor,  # shape: (p, q)
    bond: int,
) -> Range:
    """Find a subspace whose best `bond` directions lose at most 0.1 % more than the best of all.

    Args:
        matrix: a finite float32 or float64 matrix.
        bond: how many directions are wanted, at most the short side.

    Returns:
        The subspace. The same matrix gives the same bits.

    Source:
        Musco, Musco 2015, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
        Decomposition", arXiv 1504.05477 (Krylov space); Frieze, Kannan, Vempala 2004, "Fast Monte-Carlo Algorithms for
        Finding Low-Rank Approximations", doi:10.1145/1039488.1039494 (sample of rows).

    Example:
        >>> found = dominant_range(torch.outer(torch.arange(1.0, 65.0), torch.arange(1.0, 81.0)), 1)
        >>> round(float(torch.linalg.matrix_norm(found.images)) / (89440.0 * 173880.0) ** 0.5, 4)
        1.0
    """
    short = min(matrix.shape)
    width = min(-(-(bond + max(bond // 2, 8)) // BLOCK) * BLOCK, short)
    squares = row_squares(matrix)
    total = float(squares.sum())
    found = _advance(matrix, _sampled_rows(matrix, squares, width), None, of_rows=True)
    captured, other = [_captured(found, bond)], None
    early = max(matrix.shape) < NEARLY_SQUARE * short
    for _ in range(1, MAX_STEPS):
        if (0 if other is None else other.basis.shape[1]) + width > short or _settled(captured, total, early):
            break
        found, other = _advance(matrix, found.images[:, -width:], other, of_rows=not found.of_rows), found
        captured.append(_captured(found, bond))
    return found


def row_squares(
    matrix: Tensor,  # shape: (p, q)
) -> Tensor:
    """The squared norm of every row, in float64.

    Args:
        matrix: a finite float32 or float64 matrix.

    Returns:
        Shape (p,).
    """
    squares: Tensor = torch.linalg.vector_norm(matrix, dim=1).double().square()
    return squares


def draw_rows(
    squares: Tensor,  # shape: (p,)
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw rows of a matrix with the energy they hold, one from every stretch of equal energy in a random order.

    Args:
        squares: squared norm of every row.
        count: how many; only a row that holds more than its share comes more than once.
        generator: the source of chance.

    Returns:
        Row numbers, shape (count,).

    Example:
        >>> draw_rows(torch.tensor([1.0, 0.0, 2.0, 1.0]), 4, torch.Generator()).sort().values.tolist()
        [0, 2, 2, 3]
    """
    order = torch.randperm(len(squares), generator=generator)
    sums = (squares[order] if float(squares.sum()) > 0 else torch.ones_like(squares)).double().cumsum(0)
    places = (torch.arange(count) + torch.rand(1, generator=generator, dtype=torch.float64)) / count
    return order[torch.searchsorted(sums, places * sums[-1], right=True).clamp_max(len(sums) - 1)]


def unit_rows(
    rows: Tensor,  # shape: (n, q)
) -> Tensor:
    """Rows scaled to norm 1: drawn with their energy, they then stand for equal shares of it.

    Args:
        rows: the rows.

    Returns:
        A new tensor; rows of zeros stay as they are.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


def outside(
    basis: Tensor,  # shape: (n, k)
    block: Tensor,  # shape: (n, w)
) -> Tensor:
    """Orthonormal directions that a block adds to a subspace.

    Args:
        basis: orthonormal columns that span the subspace.
        block: orthonormal columns.

    Returns:
        Shape (n, w): what of the block lies outside; random directions stand in where nothing does.

    Example:
        >>> outside(torch.eye(3)[:, :1], torch.eye(3)[:, 1:2]).abs().flatten().tolist()
        [0.0, 1.0, 0.0]
    """
    # Not the directions that stood in for a block before: those are in the subspace by now.
    generator, clean = torch.Generator().manual_seed(SEED + basis.shape[1]), 0
    for _ in range(MAX_TRIES):
        block, lengths = torch.linalg.qr(block - basis @ (basis.T @ block))
        lost = lengths.diagonal().abs() < NOTHING_NEW  # inside the subspace, or the same as columns before
        clean = 0 if bool(lost.any()) else clean + 1
        if clean == 2:  # once leaves rounding errors of the first block
            break
        block[:, lost] = torch.randn(len(block), int(lost.sum()), generator=generator, dtype=block.dtype)
    return block


def orthonormal(
    columns: Tensor,  # shape: (n, w)
) -> Tensor:
    """An orthonormal basis of the space of some columns.

    Args:
        columns: the columns, at most as many as they are long.

    Returns:
        Shape (n, w).
    """
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def _sampled_rows(matrix: Tensor, squares: Tensor, width: int) -> Tensor:
    """Directions, as columns, in which a sample of the rows is large."""
    generator = torch.Generator().manual_seed(SEED)
    count = min(len(squares), max(len(squares) // SAMPLE_SHARE, 2 * width))
    sample = unit_rows(matrix[draw_rows(squares, count, generator)])
    block = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    for _ in range(SAMPLE_ROUNDS):
        block = orthonormal((orthonormal(sample @ block).T @ sample).T)
    return block


def _advance(matrix: Tensor, block: Tensor, before: Range | None, *, of_rows: bool) -> Range:
    """The subspace before with one block more, as far as that is new, and its images."""
    fresh = orthonormal(block) if before is None else outside(before.basis, orthonormal(block))
    images = matrix @ fresh if of_rows else (fresh.T @ matrix).T
    if before is not None:
        fresh, images = torch.cat((before.basis, fresh), dim=1), torch.cat((before.images, images), dim=1)
    return Range(basis=fresh, images=images, of_rows=of_rows)


def _captured(found: Range, bond: int) -> float:
    """The squared norm that the best directions of a subspace hold."""
    return float(torch.linalg.eigvalsh((found.images.T @ found.images).double())[-bond:].sum())


def _settled(captured: list[float], total: float, early: bool) -> bool:
    """Whether more steps would gain too little, their gains falling on as they have fallen so far.

    Steps from the left and from the right gain unevenly, so two are taken together. The first four can be enough, if
    they may at all, only where the last gain fell clearly: after a few large directions, it is the one that shows how
    the others come.
    """
    if len(captured) < 4:
        return False
    if len(captured) == 4 and not (early and captured[3] - captured[2] <= CLEAR_FALL * (captured[2] - captured[1])):
        return False
    before, gain = captured[-2] - captured[-4], captured[-1] - captured[-3]
    is_flat = captured[-1] - captured[-2] > FLAT * (captured[-2] - captured[-3])
    steepest = STEEPEST_FALL_OF_FLAT if is_flat else STEEPEST_FALL
    falling = min(max(gain / before if before > 0 else 0.0, steepest), FLATTEST_FALL)
    left = max(total - captured[-1], 1e-12 * total)
    return gain / 2 * falling / (1 - falling) <= EXCESS * left

"""Find the dominant subspace of a large matrix by block Lanczos, started from a sample of its rows.

The cost for a large matrix is the number of products with it. Every step is one product with a thin block, from the
left and from the right in turn, and every step measures how much of the norm the subspace captures. The start is a
sample of the rows, drawn in proportion to their energy: it saves two or three steps and costs half of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGE_ENTRIES = 2**22
"""Matrices of more entries are large: passes over them dominate time and memory."""
MAX_STEPS = 16
"""Maximum number of steps; each is one pass over the matrix."""
EXCESS = 1e-3
"""Expected gain of further steps, as a share of the discarded weight, at which the search ends. It is half of the error
allowed, since the gains of flat spectra fall ever more slowly."""
STEEPEST_FALL, FLATTEST_FALL = 0.3, 0.95
"""Limits of the factor by which the gains of further steps are expected to fall."""
FLAT, STEEPEST_FALL_OF_FLAT = 0.5, 0.55
"""The second number replaces `STEEPEST_FALL` if the last gain exceeds the first as a share of the gain before: the
remaining spectrum is then flat."""
CLEAR_FALL, NEARLY_SQUARE = 0.17, 2
"""The search may end after four steps if the last gain is below the first number as a share of the gain before, and the
long side is less than twice the short one: for noise of a longer shape, gains from the left and the right differ as
much."""
BLOCK = 16
"""Block widths are multiples of this; a product with a thinner block takes as long."""
SAMPLE_SHARE = 8
"""The sample has one row in so many."""
SAMPLE_ROUNDS = 2
NOTHING_NEW = 1e-4
"""A direction is replaced by a random one if the length of its part outside the subspace is below this."""
MAX_TRIES = 5
SEED = 20121194


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Range:
    """A subspace of the column or row space of a matrix, with its images under the matrix.

    Args:
        basis: orthonormal columns.
        images: `matrix @ basis` for a subspace of the row space, else `matrix.T @ basis`.
        of_rows: whether it is a subspace of the row space.
    """

    basis: Tensor
    images: Tensor
    of_rows: bool


def dominant_range(
    matrix: Tensor,  # shape: (p, q)
    bond: int,
) -> Range:
    """Find a subspace whose best `bond` directions discard at most 0.1 % more weight than the singular vectors.

    Args:
        matrix: a finite float32 or float64 matrix.
        bond: number of directions, at most the short side.

    Returns:
        The subspace. The same matrix gives the same bits.

    Source:
        Musco, Musco 2015, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
        Decomposition", arXiv 1504.05477 (Krylov space); Frieze, Kannan, Vempala 2004, "Fast Monte-Carlo Algorithms for
        Finding Low-Rank Approximations", doi:10.1145/1039488.1039494 (sample of rows).

    Example:
        >>> subspace = dominant_range(torch.outer(torch.arange(1.0, 65.0), torch.arange(1.0, 81.0)), 1)
        >>> round(float(torch.linalg.matrix_norm(subspace.images)) / (89440.0 * 173880.0) ** 0.5, 4)
        1.0
    """
    short = min(matrix.shape)
    width = min(-(-(bond + max(bond // 2, 8)) // BLOCK) * BLOCK, short)
    squares = row_squares(matrix)
    total = float(squares.sum())
    current = _advance(matrix, _sampled_rows(matrix, squares, width), None, of_rows=True)
    captured, other = [_captured(current, bond)], None
    may_end_early = max(matrix.shape) < NEARLY_SQUARE * short
    for _ in range(1, MAX_STEPS):
        # The two subspaces, of rows and of columns, grow in turn; neither can be wider than the short side.
        if (0 if other is None else other.basis.shape[1]) + width > short or _settled(captured, total, may_end_early):
            break
        current, other = _advance(matrix, current.images[:, -width:], other, of_rows=not current.of_rows), current
        captured.append(_captured(current, bond))
    return current


def row_squares(
    matrix: Tensor,  # shape: (p, q)
) -> Tensor:
    """Return the squared norm of every row, shape (p,), in float64.

    Args:
        matrix: a finite float32 or float64 matrix.
    """
    squares: Tensor = torch.linalg.vector_norm(matrix, dim=1).double().square()
    return squares


def draw_rows(
    squares: Tensor,  # shape: (p,)
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw rows of a matrix with probabilities in proportion to their energy (systematic sampling in a random order).

    Args:
        squares: squared norm of every row.
        count: number of rows; a row is drawn more than once only if its share of the energy exceeds 1 / count.
        generator: the random generator.

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
    """Scale rows to norm 1; rows drawn in proportion to their energy then represent equal shares of it.

    Args:
        rows: the rows.

    Returns:
        A new tensor; rows of zeros are unchanged.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


def outside(
    basis: Tensor,  # shape: (n, k)
    block: Tensor,  # shape: (n, w)
) -> Tensor:
    """Return the orthonormal directions that a block adds to a subspace.

    Args:
        basis: the subspace, as orthonormal columns.
        block: orthonormal columns.

    Returns:
        Shape (n, w): the part of the block outside the subspace; random directions replace those inside it.

    Example:
        >>> outside(torch.eye(3)[:, :1], torch.eye(3)[:, 1:2]).abs().flatten().tolist()
        [0.0, 1.0, 0.0]
    """
    # The seed depends on the width: the random directions of an earlier block are in the subspace by now.
    generator, clean = torch.Generator().manual_seed(SEED + basis.shape[1]), 0
    for _ in range(MAX_TRIES):
        block, lengths = torch.linalg.qr(block - basis @ (basis.T @ block))
        lost = lengths.diagonal().abs() < NOTHING_NEW  # inside the subspace, or dependent on earlier columns
        clean = 0 if bool(lost.any()) else clean + 1
        if clean == 2:  # one pass alone leaves rounding errors
            break
        block[:, lost] = torch.randn(len(block), int(lost.sum()), generator=generator, dtype=block.dtype)
    return block


def orthonormal(
    columns: Tensor,  # shape: (n, w)
) -> Tensor:
    """Return an orthonormal basis of the span of some columns, shape (n, w).

    Args:
        columns: the columns; w is at most n.
    """
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis


def _sampled_rows(matrix: Tensor, squares: Tensor, width: int) -> Tensor:
    """Return the dominant directions of a sample of the rows, as columns."""
    generator = torch.Generator().manual_seed(SEED)
    count = min(len(squares), max(len(squares) // SAMPLE_SHARE, 2 * width))
    sample = unit_rows(matrix[draw_rows(squares, count, generator)])
    block = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    for _ in range(SAMPLE_ROUNDS):
        block = orthonormal((orthonormal(sample @ block).T @ sample).T)
    return block


def _advance(matrix: Tensor, block: Tensor, subspace: Range | None, *, of_rows: bool) -> Range:
    """Return a subspace extended by the new directions of a block, with their images."""
    basis = orthonormal(block) if subspace is None else outside(subspace.basis, orthonormal(block))
    images = matrix @ basis if of_rows else (basis.T @ matrix).T
    if subspace is not None:
        basis, images = torch.cat((subspace.basis, basis), dim=1), torch.cat((subspace.images, images), dim=1)
    return Range(basis=basis, images=images, of_rows=of_rows)


def _captured(subspace: Range, bond: int) -> float:
    """Return the squared norm that the best directions of a subspace capture."""
    return float(torch.linalg.eigvalsh((subspace.images.T @ subspace.images).double())[-bond:].sum())


def _settled(captured: list[float], total: float, may_end_early: bool) -> bool:
    """Return whether further steps would gain too little, if their gains keep falling at the same rate.

    Steps from the left and from the right gain unevenly, so two are counted together. After four steps the search ends
    only if the last gain fell clearly: if a few directions dominate, that gain is the first that shows the others.
    """
    if len(captured) < 4:
        return False
    if len(captured) == 4 and not (
        may_end_early and captured[3] - captured[2] <= CLEAR_FALL * (captured[2] - captured[1])
    ):
        return False
    before, gain = captured[-2] - captured[-4], captured[-1] - captured[-3]
    is_flat = captured[-1] - captured[-2] > FLAT * (captured[-2] - captured[-3])
    steepest = STEEPEST_FALL_OF_FLAT if is_flat else STEEPEST_FALL
    falling = min(max(gain / before if before > 0 else 0.0, steepest), FLATTEST_FALL)
    left = max(total - captured[-1], 1e-12 * total)  # the difference may be a rounding error
    # One step gains half of what two do; further gains form a geometric series of the ratio `falling`.
    return gain / 2 * falling / (1 - falling) <= EXCESS * left

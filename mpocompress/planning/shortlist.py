"""Which site shapes of a large matrix are worth a survey: told from a sample of the rows of each unfolding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpocompress.mpo.lanczos import LARGE_ENTRIES, SEED, draw_rows, unit_rows
from mpocompress.mpo.sites import MIN_SITES, Sites

SAMPLE_ROWS, SAMPLE_BONDS = 128, 8
"""Rows of a sample: so many, or so many times the bond if that is more."""
CERTAIN = 1e-3
"""Estimated errors closer than this share are a tie."""
DOUBTFUL = 2e-2
"""Of shapes whose estimated errors are closer than this share, though no tie, all are surveyed."""


def shortlist(
    matrix: Tensor,  # shape: (rows, cols)
    shapes: Sequence[Sites],
    max_bond: int,
) -> tuple[Sites, ...]:
    """Leave out site shapes that lose more than others under a bond cap; of equals the first is kept.

    A matrix that is not large keeps all of its shapes: surveying them costs little.

    Args:
        matrix: a finite float32 or float64 matrix.
        shapes: candidates of two sites, fastest first.
        max_bond: the cap.

    Returns:
        Those left, in the same order; one, wherever the estimates are clear.

    Source:
        Frieze, Kannan, Vempala 2004, "Fast Monte-Carlo Algorithms for Finding Low-Rank Approximations",
        doi:10.1145/1039488.1039494 (a sample of rows, drawn with their energy).

    Example:
        >>> shortlist(torch.eye(4), [Sites(row_dims=(4, 1), col_dims=(1, 4))], 2)
        (Sites(row_dims=(4, 1), col_dims=(1, 4), anti_aligned=False),)
    """
    if matrix.numel() <= LARGE_ENTRIES:
        return tuple(shapes)
    count = max(SAMPLE_ROWS, SAMPLE_BONDS * max_bond)
    if len(shapes) < 2 or any(len(one.dims) != MIN_SITES or count * 2 > min(one.dims) for one in shapes):
        return tuple(shapes)
    errors = _estimated_errors(matrix, shapes, max_bond, count)
    least = min(errors)
    first = next(error for error in errors if error <= least * (1 + DOUBTFUL))
    limit = first if first <= least * (1 + CERTAIN) else least * (1 + DOUBTFUL)
    near = [one for one, error in zip(shapes, errors, strict=True) if error <= limit]
    return tuple(near[:1] if limit == first else near)


def _estimated_errors(matrix: Tensor, shapes: Sequence[Sites], max_bond: int, count: int) -> list[float]:
    """The relative error of each shape, on a sample of the rows of its unfolding; too small, for all alike."""
    rows, cols = matrix.shape
    digits = math.lcm(*(shape.col_dims[0] for shape in shapes))
    pieces = torch.linalg.vector_norm(matrix.reshape(rows, digits, cols // digits), dim=2).double().square()
    generator = torch.Generator().manual_seed(SEED)
    errors = []
    for shape in shapes:
        (first_row, last_row), (first_col, last_col) = shape.row_dims, shape.col_dims
        order = (last_row, first_row) if shape.anti_aligned else (first_row, last_row)
        slow = 0 if shape.anti_aligned else 1
        squares = pieces.reshape(*order, first_col, -1).sum(dim=(slow, 3)).reshape(-1)
        drawn = draw_rows(squares, count, generator)
        row, col = drawn // first_col, drawn % first_col
        tensor = matrix.reshape(*order, first_col, last_col)
        taken = tensor[:, row, col].transpose(0, 1) if shape.anti_aligned else tensor[row, :, col]
        sample = unit_rows(taken.reshape(count, -1))
        held = float(torch.linalg.eigvalsh(sample @ sample.T)[-max_bond:].sum())
        errors.append(math.sqrt(max(0.0, 1.0 - held / count)))
    return errors

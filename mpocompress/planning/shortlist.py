"""Discard site shapes of a large matrix by their errors on a sample of the rows of each unfolding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpocompress.mpo.lanczos import LARGE_ENTRIES, SEED, draw_rows, unit_rows
from mpocompress.mpo.sites import MIN_SITES, Sites

SAMPLE_ROWS, SAMPLE_BONDS = 128, 8
"""Rows of a sample: the first number, or the second times the bond if that is more."""
CERTAIN = 1e-3
"""Estimated errors that differ by less than this share are equal."""
DOUBTFUL = 2e-2
"""Shapes whose estimated errors differ by less than this share, but are not equal, are all kept."""


def shortlist(
    matrix: Tensor,  # shape: (rows, cols)
    shapes: Sequence[Sites],
    max_bond: int,
) -> tuple[Sites, ...]:
    """Return the site shapes that may have the smallest error under a bond cap; of equals the first.

    For a matrix that is not large these are all: their error curves cost little.

    Args:
        matrix: a finite float32 or float64 matrix.
        shapes: candidates of two sites, fastest first.
        max_bond: the cap.

    Returns:
        The shapes that are kept, in the same order; only one if the estimates differ clearly.

    Source:
        Frieze, Kannan, Vempala 2004, "Fast Monte-Carlo Algorithms for Finding Low-Rank Approximations",
        doi:10.1145/1039488.1039494 (a sample of rows, drawn in proportion to their energy).

    Example:
        >>> shortlist(torch.eye(4), [Sites(row_dims=(4, 1), col_dims=(1, 4))], 2)
        (Sites(row_dims=(4, 1), col_dims=(1, 4), anti_aligned=False),)
    """
    if matrix.numel() <= LARGE_ENTRIES:
        return tuple(shapes)
    count = max(SAMPLE_ROWS, SAMPLE_BONDS * max_bond)
    if len(shapes) < 2 or any(len(shape.dims) != MIN_SITES or count * 2 > min(shape.dims) for shape in shapes):
        return tuple(shapes)
    errors = _estimated_errors(matrix, shapes, max_bond, count)
    least = min(errors)
    first = next(error for error in errors if error <= least * (1 + DOUBTFUL))
    limit = first if first <= least * (1 + CERTAIN) else least * (1 + DOUBTFUL)
    near = [shape for shape, error in zip(shapes, errors, strict=True) if error <= limit]
    return tuple(near[:1] if limit == first else near)


def _estimated_errors(matrix: Tensor, shapes: Sequence[Sites], max_bond: int, count: int) -> list[float]:
    """Estimate the relative error of each shape on a sample of the rows of its unfolding.

    The estimates are too small, by similar shares for all shapes.
    """
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
        rows_drawn = tensor[:, row, col].transpose(0, 1) if shape.anti_aligned else tensor[row, :, col]
        sample = unit_rows(rows_drawn.reshape(count, -1))
        captured = float(torch.linalg.eigvalsh(sample @ sample.T)[-max_bond:].sum())
        errors.append(math.sqrt(max(0.0, 1.0 - captured / count)))
    return errors

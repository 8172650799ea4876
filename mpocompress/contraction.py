"""Between a matrix and its cores: index order only, no truncation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mpocompress.sites import Sites


def to_site_tensor(
    weight: Tensor,  # shape: (rows, cols)
    sites: Sites,
) -> Tensor:
    """Reorder a matrix so that every site has one index.

    Args:
        weight: the matrix.
        sites: its site dims; their products are the sides of `weight`.

    Returns:
        A contiguous tensor of shape `sites.dims`; a view of `weight` when the order does not change.

    Example:
        >>> import torch
        >>> to_site_tensor(torch.eye(4), Sites(row_dims=(2, 2), col_dims=(2, 2))).tolist()[0]
        [1.0, 0.0, 0.0, 1.0]
    """
    count = len(sites.dims)
    digits = weight.reshape(*_row_digits(sites), *sites.col_dims)
    return digits.permute([axis for site in range(count) for axis in (_row_axis(sites, site), count + site)]).reshape(
        sites.dims
    )


def to_matrix(
    cores: Sequence[Tensor],  # each of shape: (left_bond, row, col, right_bond)
    sites: Sites,
) -> Tensor:
    """Multiply the cores of an MPO out to the dense matrix.

    Args:
        cores: the cores, first site first; the outer bonds are 1.
        sites: the site dims.

    Returns:
        A new tensor of shape (rows, cols), in the dtype of the cores.

    Example:
        >>> import torch
        >>> sites = Sites(row_dims=(3, 1), col_dims=(1, 2))
        >>> to_matrix((torch.ones(1, 3, 1, 1), torch.ones(1, 1, 2, 1)), sites).shape
        torch.Size([3, 2])
    """
    count = len(cores)
    merged = cores[0].reshape(-1, cores[0].shape[-1])
    for core in cores[1:]:
        merged = (merged @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[-1])
    digits = merged.reshape([dim for pair in zip(sites.row_dims, sites.col_dims, strict=True) for dim in pair])
    rows = [2 * site for site in range(count)]
    if sites.anti_aligned:
        rows.reverse()
    return digits.permute([*rows, *(2 * site + 1 for site in range(count))]).reshape(
        math.prod(sites.row_dims), math.prod(sites.col_dims)
    )


def _row_digits(sites: Sites) -> tuple[int, ...]:
    """Row dims in the order in which the row index counts them, slowest first."""
    return sites.row_dims[::-1] if sites.anti_aligned else sites.row_dims


def _row_axis(sites: Sites, site: int) -> int:
    """Where the row digit of `site` stands among the digits of the row index."""
    return len(sites.dims) - 1 - site if sites.anti_aligned else site

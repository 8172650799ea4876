"""Between a matrix and its cores: index order only, no truncation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpocompress.sites import Sites

_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


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
    ordered = digits.permute([axis for site in range(count) for axis in (_row_axis(sites, site), count + site)])
    return _contiguous(ordered).reshape(sites.dims)


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
        right = core.reshape(core.shape[0], -1)
        if merged.requires_grad or right.requires_grad:
            merged = (merged @ right).reshape(-1, core.shape[-1])
        else:
            product = _empty((merged.shape[0], right.shape[1]), like=merged)
            merged = torch.mm(merged, right, out=product).reshape(-1, core.shape[-1])
    digits = merged.reshape([dim for pair in zip(sites.row_dims, sites.col_dims, strict=True) for dim in pair])
    rows = [2 * site for site in range(count)]
    if sites.anti_aligned:
        rows.reverse()
    return _contiguous(digits.permute([*rows, *(2 * site + 1 for site in range(count))])).reshape(sites.shape)


def _row_digits(sites: Sites) -> tuple[int, ...]:
    """Row dims in the order in which the row index counts them, slowest first."""
    return sites.row_dims[::-1] if sites.anti_aligned else sites.row_dims


def _row_axis(sites: Sites, site: int) -> int:
    """Where the row digit of `site` stands among the digits of the row index."""
    return len(sites.dims) - 1 - site if sites.anti_aligned else site


def _contiguous(tensor: Tensor) -> Tensor:
    """The same values in the order of the indices; itself where they are so already."""
    return tensor if tensor.is_contiguous() else _empty(tuple(tensor.shape), like=tensor).copy_(tensor)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor on huge pages, which numpy asks for and torch does not.

    The first writing of 64 MiB then takes a third of the time.
    """
    if like.dtype in _NUMPY_DTYPES and like.device.type == "cpu":
        return torch.from_numpy(np.empty(shape, _NUMPY_DTYPES[like.dtype]))
    return like.new_empty(shape)

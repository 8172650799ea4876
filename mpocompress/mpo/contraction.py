"""Convert between a matrix and its site tensor or cores, in the index order of the sites; nothing is truncated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mpocompress.mpo.memory import empty
from mpocompress.mpo.sites import MIN_SITES, Sites
from mpocompress.mpo.tracing import is_recorded


def to_site_tensor(
    weight: Tensor,  # shape: (rows, cols)
    sites: Sites,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Reshape a matrix to a tensor with one index per site.

    Args:
        weight: the matrix.
        sites: its site dims.
        dtype: dtype of the result, by default that of `weight`; order and dtype are converted in one copy.

    Returns:
        A contiguous tensor of shape `sites.dims`; a view of `weight` if neither order nor dtype changes.

    Example:
        >>> import torch
        >>> to_site_tensor(torch.eye(4), Sites(row_dims=(2, 2), col_dims=(2, 2))).tolist()[0]
        [1.0, 0.0, 0.0, 1.0]
    """
    count = len(sites.dims)
    digits = weight.reshape(*_row_digits(sites), *sites.col_dims)
    ordered = digits.permute([axis for site in range(count) for axis in (_row_axis(sites, site), count + site)])
    if dtype is not None and dtype != weight.dtype:
        return empty(tuple(ordered.shape), dtype).copy_(ordered).reshape(sites.dims)
    return _contiguous(ordered).reshape(sites.dims)


def to_matrix(
    cores: Sequence[Tensor],  # each of shape: (left_bond, row, col, right_bond)
    sites: Sites,
) -> Tensor:
    """Contract the cores of an MPO to the dense matrix.

    Args:
        cores: the cores in the order of the sites; the outer bonds are 1.
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
    # The memory of a recorded call must not be written to by anything else.
    recorded = is_recorded() or (torch.is_grad_enabled() and any(core.requires_grad for core in cores))
    merged = cores[0].reshape(-1, cores[0].shape[-1])
    for core in cores[1:]:
        right = core.reshape(core.shape[0], -1)
        if recorded:
            merged = (merged @ right).reshape(-1, core.shape[-1])
        else:
            product = _like((merged.shape[0], right.shape[1]), merged)
            merged = torch.mm(merged, right, out=product).reshape(-1, core.shape[-1])
    digits = merged.reshape([dim for pair in zip(sites.row_dims, sites.col_dims, strict=True) for dim in pair])
    rows = [2 * site for site in range(count)]
    if sites.anti_aligned:
        rows.reverse()
    ordered = digits.permute([*rows, *(2 * site + 1 for site in range(count))])
    return (ordered if recorded else _contiguous(ordered)).reshape(sites.shape)


def has_row_blocks(sites: Sites) -> bool:
    """Return whether `row_blocks` supports these sites: two sites, with the slow row digit on the second.

    Adjacent rows of the matrix then depend on a part of the cores only.

    Args:
        sites: the site dims.
    """
    return len(sites.dims) == MIN_SITES and (sites.anti_aligned or 1 in sites.row_dims)


def row_blocks(
    cores: Sequence[Tensor],  # two cores of shape (left_bond, row, col, right_bond)
    sites: Sites,
    entries: int,
) -> Iterator[tuple[int, Tensor]]:
    """Contract the two cores of an MPO to blocks of rows of its dense matrix.

    Args:
        cores: the two cores; the outer bonds are 1.
        sites: the site dims; see `has_row_blocks`.
        entries: approximate number of entries of a block.

    Yields:
        The first row of a block, and the block, of shape (rows, cols); every row is in one block.

    Example:
        >>> sites = Sites(row_dims=(3, 1), col_dims=(1, 2))
        >>> blocks = row_blocks((torch.ones(1, 3, 1, 1), torch.ones(1, 1, 2, 1)), sites, 4)
        >>> [(start, block.shape[0]) for start, block in blocks]
        [(0, 2), (2, 1)]
    """
    first, second = cores[0].squeeze(0), cores[1].squeeze(3)  # (row, col, bond) and (bond, row, col)
    (inner, outer), cols = sites.row_dims, sites.shape[1]
    inner_step = max(1, min(inner, entries // cols))
    outer_step = max(1, min(outer, entries // (cols * inner))) if inner_step == inner else 1
    for high in range(0, outer, outer_step):
        right = second[:, high : high + outer_step].reshape(len(second), -1)
        for low in range(0, inner, inner_step):
            left = first[low : low + inner_step]
            product = (left.reshape(-1, len(second)) @ right).reshape(*left.shape[:2], -1, second.shape[2])
            yield high * inner + low, product.permute(2, 0, 1, 3).reshape(-1, cols)


def _row_digits(sites: Sites) -> tuple[int, ...]:
    """Return the row dims in the order of the row index, slowest first."""
    return sites.row_dims[::-1] if sites.anti_aligned else sites.row_dims


def _row_axis(sites: Sites, site: int) -> int:
    """Return the position of the row digit of `site` in the row index."""
    return len(sites.dims) - 1 - site if sites.anti_aligned else site


def _contiguous(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor; the tensor itself if it is contiguous."""
    return tensor if tensor.is_contiguous() else _like(tuple(tensor.shape), tensor).copy_(tensor)


def _like(shape: tuple[int, ...], tensor: Tensor) -> Tensor:
    """Return an uninitialised tensor of the dtype and on the device of another one."""
    return empty(shape, tensor.dtype) if tensor.device.type == "cpu" else tensor.new_empty(shape)

"""Between a matrix and its cores: index order only, no truncation."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpocompress.mpo.sites import MIN_SITES, Sites

KEPT_BYTES = 2**24
"""Memory of tensors of this size on is kept for the next one."""
_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def to_site_tensor(
    weight: Tensor,  # shape: (rows, cols)
    sites: Sites,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Reorder a matrix so that every site has one index.

    Args:
        weight: the matrix.
        sites: its site dims; their products are the sides of `weight`.
        dtype: dtype of the result; by default that of `weight`. It is converted while it is reordered, in one copy.

    Returns:
        A contiguous tensor of shape `sites.dims`; a view of `weight` when neither order nor dtype change.

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
    recorded = _is_recorded(cores)
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


def to_dtype(
    tensor: Tensor,  # any shape
    dtype: torch.dtype,
) -> Tensor:
    """A tensor in another dtype.

    Args:
        tensor: the tensor.
        dtype: the dtype.

    Returns:
        A copy, on huge pages where it can be; the tensor itself where it has the dtype.
    """
    if tensor.dtype == dtype or tensor.device.type != "cpu":
        return tensor.to(dtype)
    return empty(tuple(tensor.shape), dtype).copy_(tensor)


def has_row_blocks(sites: Sites) -> bool:
    """Whether rows next to each other come from a part of the cores: two sites, the slow row digit on the second.

    Args:
        sites: the site dims.

    Returns:
        Whether `row_blocks` can take them.
    """
    return len(sites.dims) == MIN_SITES and (sites.anti_aligned or 1 in sites.row_dims)


def row_blocks(
    cores: Sequence[Tensor],  # two cores of shape (left_bond, row, col, right_bond)
    sites: Sites,
    entries: int,
) -> Iterator[tuple[int, Tensor]]:
    """Multiply the two cores of an MPO out to its dense matrix, some rows at a time.

    Args:
        cores: the two cores; the outer bonds are 1.
        sites: site dims that allow it (see `has_row_blocks`).
        entries: about how many entries a block has.

    Yields:
        The number of a row, and a block of whole rows from there on; together all rows, each once.

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
    """Row dims in the order in which the row index counts them, slowest first."""
    return sites.row_dims[::-1] if sites.anti_aligned else sites.row_dims


def _row_axis(sites: Sites, site: int) -> int:
    """Where the row digit of `site` stands among the digits of the row index."""
    return len(sites.dims) - 1 - site if sites.anti_aligned else site


def _is_recorded(tensors: Sequence[Tensor]) -> bool:
    """Whether what is done is recorded, for gradients or a program: no memory of ours may be written to then."""
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    ):
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _contiguous(tensor: Tensor) -> Tensor:
    """The same values in the order of the indices; itself where they are so already."""
    return tensor if tensor.is_contiguous() else _like(tuple(tensor.shape), tensor).copy_(tensor)


def _like(shape: tuple[int, ...], tensor: Tensor) -> Tensor:
    """An uninitialised tensor of the dtype and on the device of another one."""
    return empty(shape, tensor.dtype) if tensor.device.type == "cpu" else tensor.new_empty(shape)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on huge pages, which numpy asks for and torch does not.

    The first writing of 64 MiB then takes a third of the time, and less inside `keeping_memory`.

    Args:
        shape: its shape.
        dtype: its dtype.

    Returns:
        The tensor, on the CPU.
    """
    if dtype not in _NUMPY_DTYPES:
        return torch.empty(shape, dtype=dtype)
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes < KEPT_BYTES or not _pool.users:
        return torch.from_numpy(np.empty(shape, _NUMPY_DTYPES[dtype]))
    return torch.from_numpy(_pool.lend(size_bytes).view(_NUMPY_DTYPES[dtype]).reshape(shape))


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Keep the memory of large tensors from `empty` for the next ones, until the block ends.

    The system clears memory that it hands out, which takes longer than to fill it with numbers.
    """
    with _pool.lock:
        _pool.users += 1
    try:
        yield
    finally:
        with _pool.lock:
            _pool.users -= 1
            if not _pool.users:
                _pool.pieces.clear()


class _Pool:
    """Pieces of memory, each with what tells whether it is in use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.pieces: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[np.uint8]]]] = []

    def lend(self, size_bytes: int) -> NDArray[np.uint8]:
        """Memory that nobody holds; free pieces of another size are given up."""
        with self.lock:
            free = [memory for memory, lent in self.pieces if lent() is None]
            self.pieces = [piece for piece in self.pieces if piece[1]() is not None]
            fitting = next((memory for memory in free if len(memory) == size_bytes), None)
            del free
            memory = np.empty(size_bytes, np.uint8) if fitting is None else fitting
            lent = np.frombuffer(memory.data, np.uint8)  # alive as long as any view of it is
            self.pieces.append((memory, weakref.ref(lent)))
            return lent


_pool = _Pool()

"""Memory of large temporary tensors: allocated on huge pages, and reused within a block.

This matters for matrices of 16 MiB and more, for two reasons. numpy requests huge pages; torch does not, unless
THP_MEM_ALLOC_ENABLE=1 was set before the process started. And the system clears memory before it hands it out, which
takes longer than filling it with numbers.

The pool is the only state of the package; it is guarded by a lock, and empty outside `keeping_memory`.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEPT_BYTES = 2**24
"""Smallest tensor whose memory is kept for reuse."""
_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor on the CPU, on huge pages for float32 and float64.

    The first write to 64 MiB then takes a third of the time, and less inside `keeping_memory`.

    Args:
        shape: its shape.
        dtype: its dtype.
    """
    if dtype not in _NUMPY_DTYPES:
        return torch.empty(shape, dtype=dtype)
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes < KEPT_BYTES or not _pool.users:
        return torch.from_numpy(np.empty(shape, _NUMPY_DTYPES[dtype]))
    return torch.from_numpy(_pool.lend(size_bytes).view(_NUMPY_DTYPES[dtype]).reshape(shape))


def to_dtype(
    tensor: Tensor,  # any shape
    dtype: torch.dtype,
) -> Tensor:
    """Convert a tensor to another dtype.

    Args:
        tensor: the tensor.
        dtype: the dtype.

    Returns:
        A copy, made by `empty` on the CPU; the tensor itself if it has the dtype.
    """
    if tensor.dtype == dtype or tensor.device.type != "cpu":
        return tensor.to(dtype)
    return empty(tuple(tensor.shape), dtype).copy_(tensor)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Keep the memory of large tensors from `empty` in the block, and reuse it for the next ones of the same size."""
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
    """Pieces of memory, each with a weak reference to the array that was lent from it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.pieces: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[np.uint8]]]] = []

    def lend(self, size_bytes: int) -> NDArray[np.uint8]:
        """Return memory that is not in use; free pieces of another size are released."""
        with self.lock:
            free = [memory for memory, lent in self.pieces if lent() is None]
            self.pieces = [piece for piece in self.pieces if piece[1]() is not None]
            fitting = next((memory for memory in free if len(memory) == size_bytes), None)
            del free
            memory = np.empty(size_bytes, np.uint8) if fitting is None else fitting
            lent = np.frombuffer(memory.data, np.uint8)  # alive as long as any view of it
            self.pieces.append((memory, weakref.ref(lent)))
            return lent


_pool = _Pool()

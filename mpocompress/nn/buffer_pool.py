"""Buffers that are reused from call to call, by one thread at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class BufferPool(Generic[T]):
    """Free buffers, and a function that makes another if none is free; several threads may use the pool at once.

    Args:
        make: makes a buffer.

    Example:
        >>> pool = BufferPool(list)
        >>> buffer = pool.take()
        >>> pool.give_back(buffer)
        >>> pool.take() is buffer
        True
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: list[T] = []

    def take(self) -> T:
        """Return a buffer that no other caller has until it is given back."""
        try:
            return self._free.pop()  # without asking first: another thread may take the last one in between
        except IndexError:
            return self._make()

    def give_back(self, buffer: T) -> None:
        """Add a buffer to the free ones.

        Args:
            buffer: result of `take`.
        """
        self._free.append(buffer)

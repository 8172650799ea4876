"""Memory that a run writes to, kept from call to call, for one thread at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Rooms(Generic[T]):
    """Rooms that are free, and how another one is made when none is.

    Several threads may take one at once: each gets its own.

    Args:
        make: makes a room.

    Example:
        >>> rooms = Rooms(list)
        >>> room = rooms.take()
        >>> rooms.give(room)
        >>> rooms.take() is room
        True
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: list[T] = []

    def take(self) -> T:
        """A room that nobody else has until it is given back."""
        try:
            return self._free.pop()  # not asked beforehand: another thread may be faster
        except IndexError:
            return self._make()

    def give(self, room: T) -> None:
        """Give a room back.

        Args:
            room: as `take` gave it.
        """
        self._free.append(room)

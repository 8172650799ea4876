"""What a pickle holds beside plain values, as data: names of classes and functions, and objects that were not made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

_MOST_IN_KEY = 64
_MOST_KNOWN = 8192
_LARGEST_NARROW = 2**63
_NUMBERS = (int, float, complex)


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function that a pickle refers to; it is never looked up.

    Args:
        name: module and name, dotted: `torch.nn.modules.rnn.LSTM`.
    """

    name: str


@dataclass(slots=True, eq=False)
class Instance:
    """An object that a pickle would make by calling something: what it would be given, as data.

    Args:
        class_name: what would be called.
        arguments: with what.
        attributes: the state that would be set afterwards.
        entries: what would be appended or added to it.
        items: what would be stored in it under a key.
    """

    class_name: str
    arguments: tuple[object, ...] = ()
    attributes: dict[Any, Any] = field(default_factory=dict)
    entries: list[object] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)

    def children(self) -> Iterator[object]:
        """Yield everything in it, one level deep."""
        yield from self.arguments
        yield from self.attributes.values()
        yield from self.entries
        yield from self.items.values()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusualTensor:
    """A tensor of a kind that is not rebuilt.

    Args:
        kind: in words, such as `a quantized tensor`.
    """

    kind: str


_PLAIN_KEYS = (
    *(str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device),
    *(torch.Tensor, Global, Instance, UnusualTensor),  # a tensor is hashed as an object, not by its elements
)


class Keys:
    """Lets values become keys of dicts and entries of sets, as long as hashing them is sure to be quick.

    Hashing a tuple goes through all of it, on the C stack: a deep one ends the process, a doubled one never returns.
    And of numbers, unlike of text, the hash is known beforehand: many tuples of them, or many huge ones, can be made to
    collide.

    Example:
        >>> Keys()(("a", 1))
        ('a', 1)
    """

    def __init__(self) -> None:
        self._known = 0

    def __call__(self, value: Any) -> Any:
        """Return a value that may become a key.

        Args:
            value: any value.

        Returns:
            The value.

        Raises:
            TypeError: it is not plain, a long or deep tuple, or one of too many whose hash is known beforehand.
        """
        parts = [value]
        for part in parts:  # grows while it is walked
            if isinstance(part, tuple | frozenset):
                parts.extend(part)
                if len(parts) > _MOST_IN_KEY:
                    raise TypeError("a long or deep tuple as a key")
            elif not isinstance(part, _PLAIN_KEYS):
                raise TypeError(f"{type(part).__name__} as a key")
        if (len(parts) > 1 and any(isinstance(part, _NUMBERS) for part in parts)) or _is_wide(value):
            self._known += 1
            if self._known > _MOST_KNOWN:
                raise TypeError(f"more than {_MOST_KNOWN:,} tuples of numbers, or huge numbers, as keys")
        return value


def _is_wide(value: object) -> bool:
    """Whether a number is of a kind that has many with the same hash."""
    return isinstance(value, complex) or (type(value) is int and abs(value) >= _LARGEST_NARROW)

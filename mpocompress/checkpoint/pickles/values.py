"""What a pickle holds beside plain values, as data: names of classes and functions, and objects that were not made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

_MAX_KEY_DEPTH = 4
_LARGEST_KEY = 2**63  # larger integers can be made to collide in a dict


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
        kind: in words, such as `quantized`.
    """

    kind: str


_PLAIN_KEYS = (
    *(str, bytes, float, complex, bool, type(None), torch.dtype, torch.device),
    *(torch.Tensor, Global, Instance, UnusualTensor),  # a tensor is hashed as an object, not by its elements
)


def as_key(value: object) -> Any:
    """Return a value that may become a key of a dict or an entry of a set.

    Hashing a tuple goes through all of it, on the C stack: a deep one ends the process, a doubled one never returns.

    Args:
        value: any value.

    Returns:
        The value.

    Raises:
        TypeError: it is not plain, or a deep tuple.

    Example:
        >>> as_key(("a", 1))
        ('a', 1)
    """
    _check_key(value, 1)
    return value


def _check_key(value: object, depth: int) -> None:
    if isinstance(value, tuple) and depth <= _MAX_KEY_DEPTH:
        for inner in value:
            _check_key(inner, depth + 1)
    elif not isinstance(value, _PLAIN_KEYS) and not (isinstance(value, int) and abs(value) < _LARGEST_KEY):
        raise TypeError(f"{type(value).__name__} as a key")

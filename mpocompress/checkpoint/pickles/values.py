"""Values of a pickle beyond plain Python values: names of classes and functions, and objects as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.lazy_tensors import AnyLazyTensor, Device

_MAX_KEY_PARTS = 64
_MAX_PREDICTABLE_KEYS = 8192
_WIDE_INTEGER = 2**63
_NUMBERS = (int, float, complex)


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function that a pickle refers to; it is never imported.

    Args:
        name: module and name, dotted: `torch.nn.modules.rnn.LSTM`.
    """

    name: str


@dataclass(slots=True, eq=False)
class Instance:
    """An object that unpickling would build by a call: name and arguments of the call, as data.

    Args:
        class_name: full name of the class or function.
        arguments: arguments of the call.
        attributes: state that would be set afterwards.
        entries: values that would be appended or added.
        items: values that would be stored under a key.
    """

    class_name: str
    arguments: tuple[object, ...] = ()
    attributes: dict[Any, Any] = field(default_factory=dict)
    entries: list[object] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)

    def children(self) -> Iterator[object]:
        """Yield the values in it, one level deep."""
        yield from self.arguments
        yield from self.attributes.values()
        yield from self.entries
        yield from self.items.values()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusualTensor:
    """A tensor of a kind that is not rebuilt.

    Args:
        kind: description for messages, such as `a quantized tensor`.
    """

    kind: str


_PLAIN_KEYS = (
    *(str, bytes, int, float, complex, bool, type(None), DType, Device),
    *(AnyLazyTensor, Global, Instance, UnusualTensor),  # a lazy tensor is hashed as an object
)


class Keys:
    """Checks keys of dicts and entries of sets: only those that are hashed quickly are accepted.

    Hashing a tuple visits all of it, on the C stack: a deep one ends the process, a nested one of shared parts may take
    for ever. The hashes of numbers, unlike those of text, are predictable: many tuples of numbers, or many huge
    numbers, can be built to collide.

    Example:
        >>> Keys()(("a", 1))
        ('a', 1)
    """

    def __init__(self) -> None:
        self._predictable = 0

    def __call__(self, value: Any) -> Any:
        """Return the value.

        Raises:
            TypeError: it is not plain, a long or deep tuple, or one of too many with a predictable hash.
        """
        parts = [value]
        for part in parts:  # grows during the loop
            if isinstance(part, tuple | frozenset):
                parts.extend(part)
                if len(parts) > _MAX_KEY_PARTS:
                    raise TypeError("a long or deep tuple as a key")
            elif not isinstance(part, _PLAIN_KEYS):
                raise TypeError(f"{type(part).__name__} as a key")
        if (len(parts) > 1 and any(isinstance(part, _NUMBERS) for part in parts)) or _is_wide(value):
            self._predictable += 1
            if self._predictable > _MAX_PREDICTABLE_KEYS:
                raise TypeError(f"more than {_MAX_PREDICTABLE_KEYS:,} tuples of numbers, or huge numbers, as keys")
        return value


def _is_wide(value: object) -> bool:
    """Whether a number is of a kind for which many values have the same hash."""
    return isinstance(value, complex) or (type(value) is int and abs(value) >= _WIDE_INTEGER)

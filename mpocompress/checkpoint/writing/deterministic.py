"""Copies of values for torch.save, so that equal values give equal bytes and views are stored without unused memory."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import torch

from mpocompress.checkpoint.tensors import is_dense


def packed(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense tensor on the CPU whose storage is exactly its elements, in order, without gradient.

    The memory is shared if the tensor is like that already, and else copied.

    Example:
        >>> packed(torch.zeros(100, 100)[:2, :2]).untyped_storage().nbytes()
        16
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.numel() * plain.element_size():
        return plain
    return plain.clone(memory_format=torch.contiguous_format)


class Canonicaliser:
    """Copies values into a canonical form for one torch.save.

    A pickle depends on which strings are the same object and which are only equal. Here equal strings become one new
    object, so that the bytes depend on the values alone. Containers and tensors that are shared stay shared.

    Example:
        >>> canonicaliser = Canonicaliser()
        >>> name = canonicaliser.copy("fc.weight")
        >>> name == "fc.weight", name is canonicaliser.copy("".join(["fc", ".weight"]))
        (True, True)
    """

    def __init__(self) -> None:
        self._strings: dict[str, str] = {}
        self._shared: dict[int, object] = {}
        self._originals: list[object] = []  # kept alive, so that their ids are not reused

    def copy(self, value: object) -> Any:
        """Return a copy of a plain value, at most `MAX_DEPTH` deep.

        Values other than strings, containers and dense tensors are returned unchanged.
        """
        if isinstance(value, str):
            return self._strings.setdefault(
                value, value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
            )
        if id(value) not in self._shared:
            copied = self._copy(value)
            if copied is value:
                return value
            self._originals.append(value)
            self._shared[id(value)] = copied
        return self._shared[id(value)]

    def _copy(self, value: object) -> object:
        if isinstance(value, dict):
            copied: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
            copied.update((self.copy(key), self.copy(inner)) for key, inner in value.items())
            if isinstance(copied, OrderedDict):
                vars(copied).update(self.copy(vars(value)))
            return Counter(copied) if isinstance(value, Counter) else copied
        if isinstance(value, list):
            return [self.copy(inner) for inner in value]
        if type(value) is tuple:
            return tuple(self.copy(inner) for inner in value)
        if isinstance(value, torch.Tensor) and is_dense(value):
            return packed(value)
        return value

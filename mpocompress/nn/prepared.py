"""What is made from parameters once and kept as long as they stay the same: operands, dense weights, choices.

A parameter can be written to, which torch counts, or be replaced by another one, which `Watched` counts: modules that
hold parameters for a layer above them. A layer that has run looks at both counts, and at nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

_NOT_COUNTED = -1


class Watched(nn.Module):
    """A module whose parameters belong to a layer above it, which has to know when one is replaced."""

    replacements = 0
    """How many parameters, or modules with such, have been replaced in all modules of this kind."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and count."""
        if name != "training":
            Watched.replacements += 1
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        Watched.replacements += 1
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class Store:
    """What was made, and from what.

    Args:
        tensors: all parameters that anything in it depends on.
    """

    __slots__ = ("made", "replacements", "tensors", "versions")

    def __init__(self, tensors: list[Tensor]) -> None:
        self.replacements = Watched.replacements
        self.tensors = tensors
        self.versions = versions_of(tensors)
        self.made: dict[Hashable, Any] = {}

    @property
    def is_current(self) -> bool:
        """Whether the parameters are still the same."""
        return self.replacements == Watched.replacements and versions_of(self.tensors) == self.versions


class Preparing(nn.Module):
    """A module that keeps what it made from its parameters; neither saved, nor copied, nor pickled with it."""

    _store: Store | None
    _found: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.drop_prepared()

    def drop_prepared(self) -> None:
        """Forget what was made from the parameters.

        A layer does so by itself when they are trained, loaded, moved or replaced. Writing to them through `.data` goes
        unnoticed, because torch does not count it: call this then.
        """
        self.__dict__["_store"], self.__dict__["_found"] = None, {}

    @property
    def prepared_bytes(self) -> int:
        """Bytes that are held beside the parameters to run faster."""
        store = self.__dict__["_store"]
        if store is None:
            return 0
        own = {tensor.untyped_storage().data_ptr() for tensor in store.tensors}
        storages = [tensor.untyped_storage() for tensor in _tensors_in(store.made)]
        return sum({one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in own}.values())

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; one that changes anything drops what was prepared."""
        if name != "training" or self.__dict__.get("training") != value:
            self.drop_prepared()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_store"], state["_found"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.drop_prepared()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.drop_prepared()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def _dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        found = self._found.get("dtype")
        if found is None:
            found = self._found["dtype"] = next(self.parameters()).dtype
        dtype: torch.dtype = found
        return dtype

    def _current(self) -> Store:
        """What was made so far; a new store if the parameters have changed."""
        store: Store | None = self.__dict__["_store"]
        if store is None or not store.is_current:
            tensors: list[Tensor] = list(self.parameters())
            if store is not None and versions_of(tensors) == store.versions and _same(tensors, store.tensors):
                store.replacements = Watched.replacements  # what was replaced belongs to another layer
            else:
                self.__dict__["_store"] = store = Store(tensors)
        return store


def versions_of(tensors: list[Tensor]) -> list[int]:
    """How often each tensor has been written to."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # what is made in inference mode is not counted
        return [_NOT_COUNTED if tensor.is_inference() else tensor._version for tensor in tensors]


def _same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return len(tensors) == len(others) and all(one is other for one, other in zip(tensors, others, strict=True))


def _tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nest of what layers keep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for one in value.values() for tensor in _tensors_in(one)]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in _tensors_in(one)]
    return [tensor for one in getattr(value, "tensors", ()) for tensor in _tensors_in(one)]

"""What is made from parameters once and kept as long as they stay the same: operands, dense weights, choices."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mpocompress.mpo.tracing import is_traced

T = TypeVar("T")


class Placed(nn.ParameterList):
    """Parameters that count how often one is put in its place.

    FSDP2 frees the memory of a parameter after a run and fills it before the next one. The version of the tensor does
    not count that, and it may be the same memory again; but each time the parameter is put into its module.
    """

    placed = 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and count it."""
        self.__dict__["placed"] = self.placed + 1
        super().__setattr__(name, value)


class Store:
    """What was made of the parameters of a layer, and what they were then.

    Args:
        layer: the layer.
    """

    __slots__ = ("_inside", "_memory", "_placed", "_watched", "made")

    def __init__(self, layer: nn.Module) -> None:
        modules = list(layer.modules())
        self._inside = [(one._modules, name, child) for one in modules for name, child in one._modules.items()]
        self._placed = [(one, one.placed) for one in modules if isinstance(one, Placed)]
        self._watched = [
            (one._parameters, name, tensor, tensor.data_ptr(), _version(tensor))
            for one in modules
            for name, tensor in one._parameters.items()
            if tensor is not None
        ]
        # Held, so that nothing else is given its address.
        self._memory = [tensor.untyped_storage() for _, _, tensor, _, _ in self._watched]
        self.made: dict[Hashable, Any] = {}

    def is_current(self) -> bool:
        """Whether every parameter is in the same memory, and was neither written to nor put there again since.

        It is asked at every call of a layer, and a small layer takes a few microseconds. The dictionaries of modules
        are looked into directly, since `torch.func.functional_call` and others put parameters there and ask nobody.

        Returns:
            Whether what was made can be used.
        """
        for tensors, name, known, pointer, version in self._watched:
            tensor = tensors.get(name)
            if tensor is not known or tensor.data_ptr() != pointer:
                return False
            if tensor._version != version if version is not None else not tensor.is_inference():
                return False
        for modules, name, child in self._inside:
            if modules.get(name) is not child:
                return False
        for parameters, placed in self._placed:  # noqa: SIM110 - a generator takes longer than all of it
            if parameters.placed != placed:
                return False
        return True

    @property
    def size_bytes(self) -> int:
        """Bytes of what was made, but for what shares memory with a parameter."""
        own = {storage.data_ptr() for storage in self._memory}
        storages = [tensor.untyped_storage() for tensor in _tensors_in(list(self.made.values()))]
        return sum({one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in own}.values())


class Preparing(nn.Module):
    """A module that keeps what it made from its parameters; neither saved, nor copied, nor pickled with it."""

    _store: Store | None
    _held: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.drop_prepared()

    def drop_prepared(self) -> None:
        """Forget what was made from the parameters.

        A layer does so by itself when they are trained, loaded, moved or replaced. Writing into the memory of `.data`,
        as `weight.data.mul_(2)`, goes unnoticed, because torch does not count it: call this then.
        """
        self.__dict__["_store"], self.__dict__["_held"] = None, {}

    @property
    def prepared_bytes(self) -> int:
        """Bytes that are held beside the parameters to run faster."""
        store: Store | None = self.__dict__["_store"]
        return 0 if store is None else store.size_bytes

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; one that changes anything drops what was prepared."""
        if name != "training" or self.__dict__.get("training") != value:
            self.drop_prepared()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_store"], state["_held"]
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
        return next(self.parameters()).dtype

    def _by_parts(self, make: Callable[[], T]) -> T:
        """What is made of the own parameters and modules, as long as they are the same objects."""
        parts = [*self._parameters.values(), *self._modules.values()]
        if is_traced():
            return make()
        kept = self.__dict__["_held"].get("made")
        if kept is None or len(kept[0]) != len(parts) or not all(map(operator.is_, kept[0], parts)):
            kept = self.__dict__["_held"]["made"] = (parts, make())
        made: T = kept[1]
        return made

    def _current(self) -> Store:
        """What was made so far; a new store if the parameters have changed."""
        store: Store | None = self.__dict__["_store"]
        if store is None or not store.is_current():
            self.__dict__["_store"] = store = Store(self)
        return store


def _version(tensor: Tensor) -> int | None:
    """How often a tensor has been written to; None for one made in inference mode, of which that is not counted."""
    return None if tensor.is_inference() else tensor._version


def _tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nest of what layers keep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for one in value.values() for tensor in _tensors_in(one)]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in _tensors_in(one)]
    return [tensor for one in getattr(value, "tensors", ()) for tensor in _tensors_in(one)]

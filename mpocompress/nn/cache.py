"""Cache of values derived from the parameters of a layer: operands, dense weights, and chosen execution modes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from mpocompress.user.pytree import leaves


class TrackedParameters(nn.ParameterList):
    """Parameters that count how often one of them is assigned.

    FSDP2 frees the memory of a parameter after a run and fills it before the next one. The version of the tensor does
    not count that, and its memory may be at the same address; but the parameter is assigned to its module every time.
    """

    assignments = 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and count it."""
        self.__dict__["assignments"] = self.assignments + 1
        super().__setattr__(name, value)


class ParameterCache:
    """Values derived from the parameters of a layer, and the state of the parameters at that time.

    Args:
        layer: the layer.
    """

    __slots__ = ("_assignments", "_children", "_parameters", "_storages", "values")

    def __init__(self, layer: nn.Module) -> None:
        modules = list(layer.modules())
        self._children = [
            (module._modules, name, child) for module in modules for name, child in module._modules.items()
        ]
        self._assignments = [
            (module, module.assignments) for module in modules if isinstance(module, TrackedParameters)
        ]
        self._parameters = [
            (module._parameters, name, tensor, tensor.data_ptr(), _version(tensor))
            for module in modules
            for name, tensor in module._parameters.items()
            if tensor is not None
        ]
        # References, so that the addresses above are not reused.
        self._storages = [tensor.untyped_storage() for _, _, tensor, _, _ in self._parameters]
        self.values: dict[Hashable, Any] = {}

    def is_current(self) -> bool:
        """Return whether no parameter was moved, written to or assigned since the cache was made.

        Every call of a layer asks, and a small layer takes a few microseconds. The dictionaries of the modules are read
        directly, because `torch.func.functional_call` and others write to them directly.
        """
        for parameters, name, known, pointer, version in self._parameters:
            tensor = parameters.get(name)
            if tensor is not known or tensor.data_ptr() != pointer:
                return False
            if tensor._version != version if version is not None else not tensor.is_inference():
                return False
        for modules, name, child in self._children:
            if modules.get(name) is not child:
                return False
        for module, assignments in self._assignments:  # noqa: SIM110 - a generator takes longer than all of this
            if module.assignments != assignments:
                return False
        return True

    @property
    def size_bytes(self) -> int:
        """Bytes of the cached tensors that share no memory with a parameter."""
        parameters = {storage.data_ptr() for storage in self._storages}
        storages = [tensor.untyped_storage() for tensor in _tensors(self.values)]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for pointer, size in sizes.items() if pointer not in parameters)


def _version(tensor: Tensor) -> int | None:
    """Return the version counter of a tensor; None for an inference tensor, which has none."""
    return None if tensor.is_inference() else tensor._version


def _tensors(values: object) -> list[Tensor]:
    """Return all tensors of cached values, which are nests of tensors and of objects with a property `tensors`."""
    return [
        tensor
        for leaf in leaves(values)
        for tensor in ((leaf,) if isinstance(leaf, Tensor) else getattr(leaf, "tensors", ()))
    ]

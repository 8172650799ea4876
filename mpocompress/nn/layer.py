"""Base class of the MPO layers: the execution mode, and the cache of values derived from the parameters."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mpocompress.errors import ExecutionError
from mpocompress.mpo.tracing import is_traced
from mpocompress.nn.cache import ParameterCache
from mpocompress.nn.execution import Execution, checked

T = TypeVar("T")


class MPOLayer(nn.Module):
    """A layer with MPO weights.

    What it derives from its parameters to run faster is cached; the cache is neither saved, copied nor pickled.
    """

    execution: Execution
    _cache: ParameterCache | None
    _parts_cache: tuple[list[Any], Any] | None

    def __init__(self) -> None:
        super().__init__()
        self.clear_cache()

    def clear_cache(self) -> None:
        """Discard all values derived from the parameters.

        Training, loading, moving or replacing parameters does so automatically. Writing to the memory of `.data`, as in
        `weight.data.mul_(2)`, does not, because torch does not count it: call this afterwards.
        """
        self.__dict__["_cache"], self.__dict__["_parts_cache"] = None, None

    @property
    def cached_bytes(self) -> int:
        """Bytes held in addition to the parameters."""
        cache: ParameterCache | None = self.__dict__["_cache"]
        return 0 if cache is None else cache.size_bytes

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and clear the cache unless `training` is set to the value that it has."""
        if name != "training" or self.__dict__.get("training") != value:
            self.clear_cache()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_cache"], state["_parts_cache"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.clear_cache()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.clear_cache()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def _dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.parameters()).dtype

    def _by_parts(self, make: Callable[[], T]) -> T:
        """Return what `make` gives, cached as long as the layer's own parameters and modules are the same objects."""
        parts = [*self._parameters.values(), *self._modules.values()]
        if is_traced():
            return make()
        cached = self.__dict__["_parts_cache"]
        if cached is None or len(cached[0]) != len(parts) or not all(map(operator.is_, cached[0], parts)):
            cached = self.__dict__["_parts_cache"] = (parts, make())
        value: T = cached[1]
        return value

    def _current_cache(self) -> ParameterCache:
        """Return the cache; a new one if the parameters have changed."""
        cache: ParameterCache | None = self.__dict__["_cache"]
        if cache is None or not cache.is_current():
            self.__dict__["_cache"] = cache = ParameterCache(self)
        return cache


def set_execution(model: nn.Module, execution: Execution) -> None:
    """Set the execution mode of all MPO layers of a model.

    Args:
        model: an MPO layer, or a module that contains some.
        execution: `auto`, `factorised` or `materialised`.

    Raises:
        ExecutionError: unknown mode, or a model without MPO layers; nothing is changed.

    Example:
        >>> from mpocompress import MPO
        >>> from mpocompress.nn import MPOLinear, MPOWeight
        >>> weight = MPOWeight(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)]))
        >>> model = nn.Sequential(MPOLinear(weight))
        >>> set_execution(model, "materialised")
        >>> model[0].execution
        'materialised'
    """
    checked(execution)
    layers = [module for module in model.modules() if isinstance(module, MPOLayer)]
    if not layers:
        raise ExecutionError(
            where=type(model).__name__,
            found="no MPO layer",
            why="only MPO layers have an execution mode",
            action="Load a compressed file into the model first.",
        )
    for layer in layers:
        layer.execution = execution

"""A trainable pruned model: its remaining values are parameters, and all others stay zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Pruned(nn.Module):
    """A model in which some weights have values at fixed positions only.

    The remaining values of a weight are one vector parameter, so the zeros affect neither a step size that depends on
    the magnitude of the entries nor a limit on the gradients. This favours pruning.
    """

    def __init__(self, module: nn.Module, names: Mapping[str, object]) -> None:
        """Copy a model.

        Args:
            module: The model, zero where it is pruned.
            names: Names of the pruned weights.
        """
        super().__init__()
        self.module = copy.deepcopy(module)
        self._names = tuple(names)
        self._positions: dict[str, Tensor] = {}
        self.values = nn.ParameterList()
        for name in self._names:
            weight = self.module.get_parameter(name)
            weight.requires_grad = False
            self._positions[name] = weight.detach().flatten().nonzero().flatten()
            self.values.append(nn.Parameter(weight.detach().flatten()[self._positions[name]].clone()))
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the remaining values."""
        return functional_call(self.module, self._weights(), args, kwargs)

    def dense(self) -> nn.Module:
        """A copy of the model with ordinary weights, zero where it is pruned.

        Raises:
            ValueError: If a pruned entry is not zero.
        """
        twin = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, weight in self._weights().items():
                twin.get_parameter(name).copy_(weight)
        for name, positions in self._positions.items():
            pruned = torch.ones(twin.get_parameter(name).numel(), dtype=torch.bool)
            pruned[positions] = False
            if bool(twin.get_parameter(name).detach().flatten()[pruned].any()):
                raise ValueError(f"{name}: pruned entries are no longer zero")
        return twin.requires_grad_()

    def _weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, values in zip(self._names, self.values, strict=True):
            weight = self.module.get_parameter(name)
            weights[name] = weight.new_zeros(weight.numel()).scatter(0, self._positions[name], values).view_as(weight)
        return weights

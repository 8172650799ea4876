"""A pruned model that can be trained: the values that are left are its parameters, all others stay zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Pruned(nn.Module):
    """A model some weights of which have values at fixed places only.

    The values left of a weight are one parameter, a vector, so that neither a step size that goes by the size of the
    entries nor a bound on the gradients takes the zeros into account; that is to the good of pruning.
    """

    def __init__(self, module: nn.Module, names: Mapping[str, object]) -> None:
        """Take a copy of a model apart.

        Args:
            module: the model, zero where it is pruned.
            names: of the weights that are pruned.
        """
        super().__init__()
        self.module = copy.deepcopy(module)
        self._names = tuple(names)
        self._places: dict[str, Tensor] = {}
        self.values = nn.ParameterList()
        for name in self._names:
            weight = self.module.get_parameter(name)
            weight.requires_grad = False
            self._places[name] = weight.detach().flatten().nonzero().flatten()
            self.values.append(nn.Parameter(weight.detach().flatten()[self._places[name]].clone()))
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the values that are left."""
        return functional_call(self.module, self._weights(), args, kwargs)

    def dense(self) -> nn.Module:
        """A copy of the model as it is now, with ordinary weights, zero where it is pruned.

        Raises:
            ValueError: an entry that was pruned is not zero.
        """
        twin = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, found in self._weights().items():
                twin.get_parameter(name).copy_(found)
        for name, places in self._places.items():
            pruned = torch.ones(twin.get_parameter(name).numel(), dtype=torch.bool)
            pruned[places] = False
            if bool(twin.get_parameter(name).detach().flatten()[pruned].any()):
                raise ValueError(f"{name}: pruned entries are not zero any more")
        return twin.requires_grad_()

    def _weights(self) -> dict[str, Tensor]:
        made = {}
        for name, values in zip(self._names, self.values, strict=True):
            weight = self.module.get_parameter(name)
            made[name] = weight.new_zeros(weight.numel()).scatter(0, self._places[name], values).view_as(weight)
        return made

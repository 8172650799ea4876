"""A Linear layer whose weight is a matrix product operator."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpocompress.nn.weight import MPOWeight


class MPOLinear(nn.Module):
    """SKELETON."""

    def __init__(self, weight: MPOWeight, bias: Tensor | None = None, *, execution: str = "auto") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.sites.shape
        self.execution = execution
        self.weight = weight
        self.register_parameter("bias", bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias))

    @staticmethod
    def replacing(layer: nn.Module, weight: MPOWeight, *, execution: str = "auto") -> MPOLinear:
        new = MPOLinear(weight, getattr(layer, "bias", None), execution=execution)
        new.train(layer.training)
        return new

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.linear(input, self.weight.to_matrix(), self.bias)

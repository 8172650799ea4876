"""An LSTM cell whose weights are matrix product operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpocompress.nn.weight import MPOWeight


class MPOLSTMCell(nn.Module):
    """SKELETON."""

    def __init__(
        self, input_size: int, hidden_size: int, *, weights: Mapping[str, MPOWeight | Tensor], execution: str = "auto"
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.execution = input_size, hidden_size, execution
        for name, value in weights.items():
            setattr(self, name, value if isinstance(value, MPOWeight | nn.Parameter) else nn.Parameter(value))
        self.bias = "bias_ih" in weights

    @staticmethod
    def replacing(layer: nn.LSTMCell, weights: Mapping[str, MPOWeight], *, execution: str = "auto") -> MPOLSTMCell:
        members = {n.replace("joint", part) for n in weights for part in (("ih", "hh") if "joint" in n else ("",))}
        kept = {name: value for name, value in layer._parameters.items() if name not in weights and name not in members}
        new = MPOLSTMCell(layer.input_size, layer.hidden_size, weights={**weights, **kept}, execution=execution)
        new.train(layer.training)
        return new

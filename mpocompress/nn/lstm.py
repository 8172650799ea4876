"""An LSTM whose weights are matrix product operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpocompress.nn.weight import MPOWeight


class MPOLSTM(nn.Module):
    """SKELETON."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        weights: Mapping[str, MPOWeight | Tensor],
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        execution: str = "auto",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional, self.proj_size = batch_first, dropout, bidirectional, proj_size
        self.execution = execution
        for name, value in weights.items():
            setattr(self, name, value if isinstance(value, MPOWeight | nn.Parameter) else nn.Parameter(value))
        self.bias = "bias_ih_l0" in weights

    @staticmethod
    def replacing(layer: nn.LSTM, weights: Mapping[str, MPOWeight], *, execution: str = "auto") -> MPOLSTM:
        members = {n.replace("joint", part) for n in weights for part in (("ih", "hh") if "joint" in n else ("",))}
        kept = {name: value for name, value in layer._parameters.items() if name not in weights and name not in members}
        new = MPOLSTM(
            layer.input_size, layer.hidden_size, layer.num_layers, weights={**weights, **kept},
            batch_first=layer.batch_first, dropout=layer.dropout, bidirectional=layer.bidirectional,
            proj_size=layer.proj_size, execution=execution,
        )
        new.train(layer.training)
        return new

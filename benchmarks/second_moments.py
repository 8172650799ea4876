"""Second moments of the inputs of a model's weights, for the baselines of `benchmarks/quality.py`.

Independent of the statistics that mpocompress collects: hooks record the inputs of LSTM and Linear layers, and an LSTM
runs layer by layer to expose its hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Group = tuple[str, ...]
"""Names of weights whose products are added: the two of an LSTM layer, or the one of a Linear layer."""

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def second_moments(module: nn.Module, batches: Sequence[Tensor], weights: Sequence[str]) -> Mapping[Group, Tensor]:
    """Return the mean of z z^T over all calls and steps, where z stacks the inputs of a group of weights.

    Args:
        module: The model, called with each batch.
        batches: Calibration inputs.
        weights: Names of the weights.

    Returns:
        Group -> its uncentred moment, float64, (columns, columns).

    Raises:
        ValueError: If a weight belongs to an unsupported layer.
    """
    sums: dict[Group, Tensor] = {}
    counts: dict[Group, int] = {}

    def record(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        levels = _levels(name, layer, inputs[0]) if isinstance(layer, nn.LSTM) else [((f"{name}.weight",), inputs[0])]
        for group, values in levels:
            flat = values.reshape(-1, values.shape[-1]).double()
            sums[group] = sums.get(group, 0) + flat.T @ flat
            counts[group] = counts.get(group, 0) + len(flat)

    hooks = [
        layer.register_forward_pre_hook(partial(record, name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.LSTM | nn.Linear)
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                module(batch)
    finally:
        for hook in hooks:
            hook.remove()
    moments = {group: sums[group] / counts[group] for group in sums if set(group) <= set(weights)}
    if missing := set(weights).difference(*moments):
        raise ValueError(f"no inputs were recorded for {', '.join(sorted(missing))}")
    return moments


def _levels(name: str, lstm: nn.LSTM, inputs: Tensor) -> Iterator[tuple[Group, Tensor]]:
    """The weights of each layer of an LSTM, and their inputs: the input beside the previous hidden state."""
    if lstm.bidirectional or lstm.proj_size or not lstm.batch_first or not lstm.bias:
        raise ValueError(f"{name}: only a unidirectional LSTM with biases and batch_first is supported")
    for level in range(lstm.num_layers):
        single = nn.LSTM(inputs.shape[-1], lstm.hidden_size, batch_first=True)
        single.load_state_dict({f"{part}_l0": getattr(lstm, f"{part}_l{level}") for part in PARTS})
        hidden, _ = single(inputs)
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)
        group = (f"{name}.weight_ih_l{level}", f"{name}.weight_hh_l{level}")
        yield group, torch.cat([inputs, before], -1)
        inputs = hidden

"""Second moments of what the weights of a model are multiplied with, for the baselines of `benchmarks/quality.py`.

Independent of what mpocompress itself collects, on purpose: hooks note what LSTM and Linear layers are called with, and
an LSTM is run level by level to see its hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Group = tuple[str, ...]
"""Names of weights that add up their products: the two of an LSTM level, or the one of a Linear layer."""

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def second_moments(module: nn.Module, batches: Sequence[Tensor], weights: Sequence[str]) -> Mapping[Group, Tensor]:
    """Mean of z z^T over all calls and steps, z being the inputs of a group of weights one after the other.

    Args:
        module: called with each batch.
        batches: calibration inputs.
        weights: names of those that are wanted.

    Returns:
        group -> its moment, float64, (columns, columns); nothing is taken off for the mean.

    Raises:
        ValueError: a weight of a layer that this is not written for.
    """
    sums: dict[Group, Tensor] = {}
    counts: dict[Group, int] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        levels = _levels(name, layer, inputs[0]) if isinstance(layer, nn.LSTM) else [((f"{name}.weight",), inputs[0])]
        for group, seen in levels:
            flat = seen.reshape(-1, seen.shape[-1]).double()
            sums[group] = sums.get(group, 0) + flat.T @ flat
            counts[group] = counts.get(group, 0) + len(flat)

    hooks = [
        layer.register_forward_pre_hook(partial(note, name))
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
    found = {group: sums[group] / counts[group] for group in sums if set(group) <= set(weights)}
    if missing := set(weights).difference(*found):
        raise ValueError(f"no inputs were seen of {', '.join(sorted(missing))}")
    return found


def _levels(name: str, lstm: nn.LSTM, inputs: Tensor) -> Iterator[tuple[Group, Tensor]]:
    """The weights of each level, and what they are multiplied with: the inputs beside the hidden states before them."""
    if lstm.bidirectional or lstm.proj_size or not lstm.batch_first or not lstm.bias:
        raise ValueError(f"{name}: only an LSTM of one direction, with biases and batch_first, is read here")
    for level in range(lstm.num_layers):
        single = nn.LSTM(inputs.shape[-1], lstm.hidden_size, batch_first=True)
        single.load_state_dict({f"{part}_l0": getattr(lstm, f"{part}_l{level}") for part in PARTS})
        hidden, _ = single(inputs)
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)
        group = (f"{name}.weight_ih_l{level}", f"{name}.weight_hh_l{level}")
        yield group, torch.cat([inputs, before], -1)
        inputs = hidden

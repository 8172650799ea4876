"""The arithmetic of an LSTM's gates, in place, a step at a time: a dozen calls, so that what a call costs decides.

The hyperbolic tangent of torch takes six times as long as its sigmoid, and a call of torch on a few hundred numbers
twice as long as one of numpy. So small states are advanced by numpy, where sigmoid(x) is (tanh(x / 2) + 1) / 2, and
large ones by torch, where tanh(x) is 2 sigmoid(2 x) - 1. Either wants some gates scaled beforehand; a product whose
operands can be scaled spares that call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMPY_ENTRIES = 4096
"""Cell states of up to this many numbers are advanced by numpy."""

Advance = Callable[[Any], None]
"""Takes one of `places`, where the new output goes."""


def uses_numpy(cell: Tensor) -> bool:
    """Whether numpy advances a cell state: on the CPU, and small.

    Args:
        cell: the state, shape (batch, hidden).

    Returns:
        Whether it does.
    """
    return cell.device.type == "cpu" and cell.numel() <= NUMPY_ENTRIES


def gate_scale(
    cell: Tensor,  # shape: (batch, hidden)
) -> Tensor:  # shape: (4 * hidden,)
    """What the rows of a weight are multiplied with, so that its gates need no scaling any more.

    Args:
        cell: the state that will be advanced.

    Returns:
        A number for every row: input, forget, cell and output gate.
    """
    others, new = (0.5, 1.0) if uses_numpy(cell) else (1.0, 2.0)
    hidden = cell.shape[-1]
    scale = cell.new_full((4 * hidden,), others)
    scale[2 * hidden : 3 * hidden] = new
    return scale


def places(
    outputs: Tensor,  # shape: (time, batch, hidden)
    cell: Tensor,  # shape: (batch, hidden)
) -> Sequence[Any]:
    """Every step's place in the outputs, as `advancing` wants it.

    Args:
        outputs: where the outputs go.
        cell: the state that will be advanced.

    Returns:
        One for every step.
    """
    return list(outputs.numpy()) if uses_numpy(cell) else outputs.unbind(0)


def advancing(
    gates: Tensor,  # shape: (batch, 4 * hidden)
    cell: Tensor,  # shape: (batch, hidden)
    *,
    scaled: bool,
) -> Advance:
    """What makes a new cell state and a new output from pre-activations.

    Args:
        gates: where the pre-activations are before every step, in the order of torch; overwritten by each.
        cell: the cell state; overwritten by each step.
        scaled: whether the pre-activations have been multiplied with `gate_scale`.

    Returns:
        The step: a function of where the output goes.
    """
    return _with_numpy(gates, cell, scaled) if uses_numpy(cell) else _with_torch(gates, cell, scaled)


def _with_numpy(gates: Tensor, cell: Tensor, scaled: bool) -> Advance:
    every, state = gates.numpy(), cell.numpy()
    hidden = state.shape[-1]
    into, forget, new, out = (every[:, gate * hidden : (gate + 1) * hidden] for gate in range(4))
    half, shift = np.full_like(every, 0.5), np.full_like(every, 0.5)
    half[:, 2 * hidden : 3 * hidden], shift[:, 2 * hidden : 3 * hidden] = 1.0, 0.0
    spare = np.empty_like(state)
    add, multiply, tanh = np.add, np.multiply, np.tanh

    def advance(place: Any) -> None:
        if not scaled:
            multiply(every, half, every)
        tanh(every, every)
        multiply(every, half, every)
        add(every, shift, every)
        multiply(state, forget, state)
        multiply(into, new, spare)
        add(state, spare, state)
        tanh(state, spare)
        multiply(out, spare, place)

    return advance


def _with_torch(gates: Tensor, cell: Tensor, scaled: bool) -> Advance:
    into, forget, new, out = gates.chunk(4, dim=1)
    minus, twice, spare = torch.full_like(cell, -1.0), torch.full_like(cell, 2.0), torch.empty_like(cell)
    add, addcmul, multiply = torch.add, torch.addcmul, torch.mul

    def advance(place: Any) -> None:
        if not scaled:
            new.add_(new)
        gates.sigmoid_()
        addcmul(minus, new, twice, out=new)
        cell.mul_(forget)
        cell.addcmul_(into, new)
        add(cell, cell, out=spare)
        spare.sigmoid_()
        addcmul(minus, spare, twice, out=spare)
        multiply(out, spare, out=place)

    return advance

"""Gate arithmetic of an LSTM, in place and one step at a time: about a dozen calls, whose overhead dominates.

torch's hyperbolic tangent takes six times as long as its sigmoid, and a call of torch on a few hundred numbers takes
twice as long as one of numpy. Therefore numpy updates small states, with sigmoid(x) = (tanh(x / 2) + 1) / 2, and torch
large ones, with tanh(x) = 2 sigmoid(2 x) - 1. Both need some pre-activations scaled first; if the operands of the
product are scaled instead, that call is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMPY_ENTRIES = 4096
"""Largest cell state that numpy updates, in entries."""

Native = Any
"""A tensor, or the numpy array that shares its memory, whichever the gate arithmetic uses."""
GateUpdate = Callable[[Native, Native, Native], None]
"""Takes the cell state before a step, and writes to the cell state after it and to the output."""


def uses_numpy(cell: Tensor) -> bool:
    """Return whether numpy updates a cell state: on the CPU, and small.

    Args:
        cell: the state, shape (batch, hidden).
    """
    return cell.device.type == "cpu" and cell.numel() <= NUMPY_ENTRIES


def as_native(tensor: Tensor, *, numpy: bool) -> Native:
    """Return a tensor that requires no gradient as the gate arithmetic uses it, sharing memory.

    Args:
        tensor: the tensor.
        numpy: result of `uses_numpy`.
    """
    return tensor.numpy() if numpy else tensor


def gate_scale(
    cell: Tensor,  # shape: (batch, hidden)
) -> Tensor:  # shape: (4 * hidden,)
    """Return the factors for the rows of a weight after which its pre-activations need no more scaling.

    Args:
        cell: a cell state of the size that will be updated.

    Returns:
        A factor for every row: input, forget, cell and output gate.
    """
    others, new = (0.5, 1.0) if uses_numpy(cell) else (1.0, 2.0)
    hidden = cell.shape[-1]
    scale = cell.new_full((4 * hidden,), others)
    scale[2 * hidden : 3 * hidden] = new
    return scale


def step_outputs(outputs: Tensor, *, numpy: bool) -> Sequence[Native]:
    """Return a view of the outputs of every step.

    Args:
        outputs: shape (time, batch, hidden).
        numpy: result of `uses_numpy`.
    """
    return list(outputs.numpy()) if numpy else outputs.unbind(0)


def gate_update(
    gates: Tensor,  # shape: (batch, 4 * hidden)
    *,
    scaled: bool,
    numpy: bool,
) -> GateUpdate:
    """Make the function that computes a new cell state and output from the pre-activations.

    Args:
        gates: holds the pre-activations before every step, in torch's order; every step overwrites them.
        scaled: whether the pre-activations are multiplied by `gate_scale` already.
        numpy: result of `uses_numpy`.

    Returns:
        The function; it may write the new cell state over the old one.
    """
    return _numpy_update(gates.numpy(), scaled) if numpy else _torch_update(gates, scaled)


def _numpy_update(gates: np.ndarray[Any, Any], scaled: bool) -> GateUpdate:
    hidden = gates.shape[1] // 4
    into, forget, new, out = (gates[:, gate * hidden : (gate + 1) * hidden] for gate in range(4))
    half, shift = np.full_like(gates, 0.5), np.full_like(gates, 0.5)
    half[:, 2 * hidden : 3 * hidden], shift[:, 2 * hidden : 3 * hidden] = 1.0, 0.0
    spare = np.empty_like(new)
    add, multiply, tanh = np.add, np.multiply, np.tanh

    def update(before: Native, after: Native, output: Native) -> None:
        if not scaled:
            multiply(gates, half, gates)
        tanh(gates, gates)
        multiply(gates, half, gates)
        add(gates, shift, gates)
        multiply(before, forget, after)
        multiply(into, new, spare)
        add(after, spare, after)
        tanh(after, spare)
        multiply(out, spare, output)

    return update


def _torch_update(gates: Tensor, scaled: bool) -> GateUpdate:
    into, forget, new, out = gates.chunk(4, dim=1)
    spare = torch.empty_like(new, memory_format=torch.contiguous_format)
    minus, twice = torch.full_like(spare, -1.0), torch.full_like(spare, 2.0)
    add, addcmul, multiply = torch.add, torch.addcmul, torch.mul

    def update(before: Native, after: Native, output: Native) -> None:
        if not scaled:
            new.add_(new)
        gates.sigmoid_()
        addcmul(minus, new, twice, out=new)
        multiply(before, forget, out=after)
        after.addcmul_(into, new)
        add(after, after, out=spare)
        spare.sigmoid_()
        addcmul(minus, spare, twice, out=spare)
        multiply(out, spare, out=output)

    return update

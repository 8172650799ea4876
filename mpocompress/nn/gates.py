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

Native = Any
"""A tensor, or the numpy array that shares its memory, whichever the gates are computed with."""
Advance = Callable[[Native, Native, Native], None]
"""Takes the cell state before a step, and where the one after it and the output go."""


def uses_numpy(cell: Tensor) -> bool:
    """Whether numpy advances a cell state: on the CPU, and small.

    Args:
        cell: the state, shape (batch, hidden).

    Returns:
        Whether it does.
    """
    return cell.device.type == "cpu" and cell.numel() <= NUMPY_ENTRIES


def natively(tensor: Tensor, *, numpy: bool) -> Native:
    """A tensor as the gates are computed with it, sharing memory.

    Args:
        tensor: one that needs no gradient.
        numpy: as `uses_numpy` says.

    Returns:
        Itself, or an array.
    """
    return tensor.numpy() if numpy else tensor


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


def places(outputs: Tensor, *, numpy: bool) -> Sequence[Native]:
    """Every step's place in the outputs.

    Args:
        outputs: where the outputs go, shape (time, batch, hidden).
        numpy: as `uses_numpy` says.

    Returns:
        One for every step.
    """
    return list(outputs.numpy()) if numpy else outputs.unbind(0)


def advancing(
    gates: Tensor,  # shape: (batch, 4 * hidden)
    *,
    scaled: bool,
    numpy: bool,
) -> Advance:
    """What makes a new cell state and a new output from pre-activations.

    Args:
        gates: where the pre-activations are before every step, in the order of torch; overwritten by each.
        scaled: whether the pre-activations have been multiplied with `gate_scale`.
        numpy: as `uses_numpy` says.

    Returns:
        The step; the cell state after it may go where the one before it was.
    """
    return _with_numpy(gates.numpy(), scaled) if numpy else _with_torch(gates, scaled)


def _with_numpy(gates: np.ndarray[Any, Any], scaled: bool) -> Advance:
    hidden = gates.shape[1] // 4
    into, forget, new, out = (gates[:, gate * hidden : (gate + 1) * hidden] for gate in range(4))
    half, shift = np.full_like(gates, 0.5), np.full_like(gates, 0.5)
    half[:, 2 * hidden : 3 * hidden], shift[:, 2 * hidden : 3 * hidden] = 1.0, 0.0
    spare = np.empty_like(new)
    add, multiply, tanh = np.add, np.multiply, np.tanh

    def advance(before: Native, after: Native, place: Native) -> None:
        if not scaled:
            multiply(gates, half, gates)
        tanh(gates, gates)
        multiply(gates, half, gates)
        add(gates, shift, gates)
        multiply(before, forget, after)
        multiply(into, new, spare)
        add(after, spare, after)
        tanh(after, spare)
        multiply(out, spare, place)

    return advance


def _with_torch(gates: Tensor, scaled: bool) -> Advance:
    into, forget, new, out = gates.chunk(4, dim=1)
    spare = torch.empty_like(new, memory_format=torch.contiguous_format)
    minus, twice = torch.full_like(spare, -1.0), torch.full_like(spare, 2.0)
    add, addcmul, multiply = torch.add, torch.addcmul, torch.mul

    def advance(before: Native, after: Native, place: Native) -> None:
        if not scaled:
            new.add_(new)
        gates.sigmoid_()
        addcmul(minus, new, twice, out=new)
        multiply(before, forget, out=after)
        after.addcmul_(into, new)
        add(after, after, out=spare)
        spare.sigmoid_()
        addcmul(minus, spare, twice, out=spare)
        multiply(out, spare, out=place)

    return advance

"""One direction of one level of an LSTM over a sequence, without gradients: a tight loop on what was made before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.gates import Advance, Native, advancing, natively, places, uses_numpy
from mpocompress.nn.operands import Product
from mpocompress.nn.steps import Operands, Steps, steps_of

STRETCH_ENTRIES = 2**18
"""The inputs' products are prepared for as many steps at a time as stay, with what is between, in a usual cache."""


def run(
    x: Tensor,  # shape: (time, batch, inputs)
    h: Tensor,  # shape: (batch, outputs)
    c: Tensor,  # shape: (batch, hidden)
    weights: Operands,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run over a sequence.

    Args:
        x: the inputs, in the dtype of the operands.
        h: the outputs before the first step.
        c: the cell state before the first step.
        weights: of the direction.
        reverse: whether the last input comes first.

    Returns:
        The outputs, shape (time, batch, outputs), and the last cell state; new tensors.
    """
    steps, batch, _ = x.shape
    layout = weights.hidden.layout
    before = layout.before if layout is not None else 0
    # Every output is the input of the next step; the state before the first has a place of its own.
    states = x.new_empty(steps + 1, batch, before + h.shape[1])
    states[:, :, :before] = 0
    outputs = states[:, :, before:]
    outputs[steps if reverse else 0] = h
    cell, gates = c.clone(memory_format=torch.contiguous_format), x.new_empty(batch, 4 * c.shape[1])
    products = steps_of(weights, gates)
    numpy, seen = uses_numpy(cell), products.seen(states)
    advance, state = advancing(gates, scaled=weights.scale is not None, numpy=numpy), natively(cell, numpy=numpy)
    targets = places(outputs, numpy=numpy and weights.projection is None)
    if weights.projection is not None:
        advance = _projecting(advance, weights.projection, cell, numpy=numpy)
    entries = max(gates.numel(), batch * weights.inputs.middle_entries)
    multiply, addends = products.multiply, _addends(x, products, entries, reverse=reverse)
    if reverse:
        for h_before, addend, target in zip(reversed(seen[1:]), addends, reversed(targets[:-1]), strict=True):
            multiply(h_before, addend)
            advance(state, state, target)
    else:
        for h_before, addend, target in zip(seen[:-1], addends, targets[1:], strict=True):
            multiply(h_before, addend)
            advance(state, state, target)
    done = outputs[:-1] if reverse else outputs[1:]
    return (done.contiguous() if before else done), cell


def _addends(x: Tensor, products: Steps, entries: int, *, reverse: bool) -> Iterator[Any]:
    """What every step needs of its inputs, in the order of the steps, prepared a stretch at a time."""
    stretch = max(1, STRETCH_ENTRIES // max(entries, 1))
    starts = range(0, len(x), stretch)
    for start in reversed(starts) if reverse else starts:
        prepared = products.prepare(x[start : start + stretch])
        yield from reversed(prepared) if reverse else prepared


def _projecting(advance: Advance, projection: Product, cell: Tensor, *, numpy: bool) -> Advance:
    """What lets the output of the gates into a place of its own, and its projection into the outputs."""
    let_out = torch.empty_like(cell)
    place = natively(let_out, numpy=numpy)

    def project(before: Native, after: Native, target: Native) -> None:
        advance(before, after, place)
        target.copy_(projection(let_out))

    return project

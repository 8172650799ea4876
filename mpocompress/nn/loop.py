"""One direction of one level of an LSTM over a sequence, without gradients: a tight loop over what was made before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.gates import advancing, places
from mpocompress.nn.operands import Product
from mpocompress.nn.steps import Direction, Steps, steps_of

STRETCH_ENTRIES = 2**18
"""Pre-activations are prepared for as many steps at a time as stay in a cache of the usual size."""


def run(
    x: Tensor,  # shape: (time, batch, inputs)
    h: Tensor,  # shape: (batch, outputs)
    c: Tensor,  # shape: (batch, hidden)
    direction: Direction,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run over a sequence.

    Args:
        x: the inputs, in the dtype of the operands.
        h: the outputs before the first step.
        c: the cell state before the first step.
        direction: the weights.
        reverse: whether the last input comes first.

    Returns:
        The outputs, shape (time, batch, outputs), and the last cell state; new tensors.
    """
    steps, batch, _ = x.shape
    layout = direction.hidden.layout
    before = layout.before if layout is not None else 0
    # Every output is the input of the next step; the state before the first has a place of its own.
    states = x.new_empty(steps + 1, batch, before + h.shape[1])
    states[:, :, :before] = 0
    outputs = states[:, :, before:]
    outputs[steps if reverse else 0] = h
    cell, gates = c.clone(memory_format=torch.contiguous_format), x.new_empty(batch, 4 * c.shape[1])
    products = steps_of(direction, gates)
    seen, finish = products.seen(states), advancing(gates, cell, scaled=direction.scale is not None)
    targets = places(outputs, cell)
    if direction.projection is not None:
        finish, targets = _projecting(finish, direction.projection, cell), outputs.unbind(0)
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    source, target = (1, 0) if reverse else (0, 1)
    multiply = products.multiply
    for step, addend in zip(order, _addends(x, products, gates.numel(), reverse=reverse), strict=True):
        multiply(seen[step + source], addend)
        finish(targets[step + target])
    done = outputs[:steps] if reverse else outputs[1:]
    return (done.contiguous() if before else done), cell


def _addends(x: Tensor, products: Steps, entries: int, *, reverse: bool) -> Iterator[Any]:
    """What every step needs of its inputs, in the order of the steps, prepared a stretch at a time."""
    stretch = max(1, STRETCH_ENTRIES // max(entries, 1))
    starts = range(0, len(x), stretch)
    for start in reversed(starts) if reverse else starts:
        prepared = products.prepare(x[start : start + stretch])
        yield from reversed(prepared) if reverse else prepared


def _projecting(advance: Callable[[Any], None], projection: Product, cell: Tensor) -> Callable[[Tensor], None]:
    """What lets the gates' output into a place of its own and puts its projection into the outputs."""
    let_out = torch.empty_like(cell)
    (place,) = places(let_out[None], cell)

    def finish(target: Tensor) -> None:
        advance(place)
        target.copy_(projection(let_out))

    return finish

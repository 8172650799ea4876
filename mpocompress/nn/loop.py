"""One direction of one level of an LSTM over a sequence, without gradients: a tight loop on what was made before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.buffer_pool import Rooms
from mpocompress.nn.gates import Advance, Native, advancing, natively, places, uses_numpy
from mpocompress.nn.operands import Product
from mpocompress.nn.steps import Operands, Steps, steps_of

STRETCH_ENTRIES = 2**18
"""The inputs' products are prepared for as many steps at a time as stay, with what is between, in a usual cache."""


class Loop:
    """One direction over sequences of as many rows, with room that is kept from call to call.

    Several threads may call it at once: each takes room of its own.

    Args:
        weights: of the direction, scaled where they can be.
        cell: a cell state as it will come, shape (batch, hidden), in the dtype of the operands.
    """

    def __init__(self, weights: Operands, cell: Tensor) -> None:
        self._weights = weights
        self._batch, self._hidden = cell.shape
        self._numpy = uses_numpy(cell)
        self._rooms = Rooms(self._room)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The operands."""
        return self._weights.tensors

    def __call__(
        self,
        x: Tensor,  # shape: (time, batch, inputs)
        h: Tensor,  # shape: (batch, outputs)
        c: Tensor,  # shape: (batch, hidden)
        *,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run over a sequence.

        Args:
            x: the inputs, in the dtype of the operands.
            h: the outputs before the first step.
            c: the cell state before the first step.
            reverse: whether the last input comes first.

        Returns:
            The outputs, shape (time, batch, outputs), and the last cell state; new tensors.
        """
        layout, projects = self._weights.hidden.layout, self._weights.projection is not None
        before = layout.before if layout is not None else 0
        # Every output is the input of the next step; the state before the first has a place of its own.
        states = torch.empty(len(x) + 1, self._batch, before + h.shape[1], dtype=x.dtype, device=x.device)
        outputs = states
        if before:
            states[:, :, :before] = 0
            outputs = states[:, :, before:]
        outputs[len(x) if reverse else 0] = h
        room = self._rooms.take()
        cell = c.clone(memory_format=torch.contiguous_format)
        state, advance = natively(cell, numpy=self._numpy), room.advance
        seen, targets = room.products.seen(states), places(outputs, numpy=self._numpy and not projects)
        multiply, addends = room.products.multiply, self._addends(x, room.products, reverse=reverse)
        if reverse:
            for h_before, addend, target in zip(reversed(seen[1:]), addends, reversed(targets[:-1]), strict=True):
                multiply(h_before, addend)
                advance(state, state, target)
        else:
            for h_before, addend, target in zip(seen[:-1], addends, targets[1:], strict=True):
                multiply(h_before, addend)
                advance(state, state, target)
        self._rooms.give(room)
        done = outputs[:-1] if reverse else outputs[1:]
        return (done.contiguous() if before else done), cell

    def _room(self) -> _Room:
        weights = self._weights
        with torch.inference_mode(False), torch.no_grad():  # or only inference mode could write to it later
            like = torch.empty(0, dtype=weights.bias.dtype, device=weights.bias.device)
            gates = like.new_empty(self._batch, 4 * self._hidden)
            advance = advancing(gates, scaled=weights.scale is not None, numpy=self._numpy)
            if weights.projection is not None:
                let_out = like.new_empty(self._batch, self._hidden)
                advance = _projecting(advance, weights.projection, let_out, numpy=self._numpy)
            return _Room(products=steps_of(weights, gates), advance=advance)

    def _addends(self, x: Tensor, products: Steps, *, reverse: bool) -> Iterator[Any]:
        """What every step needs of its inputs, in the order of the steps, prepared a stretch at a time."""
        entries = self._batch * max(4 * self._hidden, self._weights.inputs.middle_entries)
        stretch = max(1, STRETCH_ENTRIES // max(entries, 1))
        starts = range(0, len(x), stretch)
        for start in reversed(starts) if reverse else starts:
            prepared = products.prepare(x[start : start + stretch])
            yield from reversed(prepared) if reverse else prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What a run writes to; one at a time uses it.

    Args:
        products: the products of a step, which leave the pre-activations.
        advance: the arithmetic of the gates.
    """

    products: Steps
    advance: Advance


def _projecting(advance: Advance, projection: Product, let_out: Tensor, *, numpy: bool) -> Advance:
    """What lets the output of the gates into a place of its own, and its projection into the outputs."""
    place = natively(let_out, numpy=numpy)

    def project(before: Native, after: Native, target: Native) -> None:
        advance(before, after, place)
        target.copy_(projection(let_out))

    return project

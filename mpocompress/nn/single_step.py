"""One step of one direction of an LSTM, without gradients: nothing but its products and the arithmetic of its gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mpocompress.nn.buffer_pool import Rooms
from mpocompress.nn.gates import Advance, advancing, uses_numpy
from mpocompress.nn.loop import Loop
from mpocompress.nn.operands import Product
from mpocompress.nn.steps import SCALED_ENTRIES, Operands

Fill = Callable[[Tensor, Tensor], None]
"""Takes an input and the output of the step before, and leaves the pre-activations."""


class SingleStep:
    """One step for batches of one size, with room for what is between its products that is kept from call to call.

    Several threads may call it at once: each takes room of its own.

    Args:
        weights: of the direction, scaled where they can be.
        cell: a cell state as it will come, shape (batch, hidden), in the dtype of the operands.
    """

    def __init__(self, weights: Operands, cell: Tensor) -> None:
        self._weights = weights
        self._shape = tuple(cell.shape)
        self._dtype, self.device_type = cell.dtype, cell.device.type
        self._numpy = uses_numpy(cell)
        self._loop = Loop(weights, cell)
        self._rooms = Rooms(self._room)
        self._is_short = weights.projection is None and all(map(_is_short, (weights.inputs, weights.hidden)))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The operands."""
        return self._weights.tensors

    def __call__(
        self,
        x: Tensor,  # shape: (batch, inputs)
        h: Tensor,  # shape: (batch, outputs)
        c: Tensor,  # shape: (batch, hidden)
    ) -> tuple[Tensor, Tensor]:
        """Run the step.

        Args:
            x: the input, in the dtype of the operands.
            h: the output of the step before.
            c: the cell state before.

        Returns:
            The new output and cell state; new tensors.
        """
        if not self._is_short:
            y, c = self._loop(x.unsqueeze(0), h, c)
            return y[0], c
        fill, advance = room = self._rooms.take()
        fill(x, h)
        if self._numpy:  # memory of numpy is had in a third of the time
            given = (c.detach() if c.requires_grad else c).numpy()
            let_out, kept = np.empty(self._shape, given.dtype), np.empty(self._shape, given.dtype)
            advance(given, kept, let_out)
            output, after = torch.from_numpy(let_out), torch.from_numpy(kept)
        else:
            output, after = torch.empty_like(c), torch.empty_like(c)
            advance(c, after, output)
        self._rooms.give(room)
        return output, after

    def _room(self) -> tuple[Fill, Advance]:
        batch, hidden = self._shape
        with torch.inference_mode(False), torch.no_grad():  # or only inference mode could write to it later
            gates = torch.empty(batch, 4 * hidden, dtype=self._dtype, device=self._weights.bias.device)
            scaled = self._weights.scale is not None
            return _filling(self._weights, gates), advancing(gates, scaled=scaled, numpy=self._numpy)


class DenseStep:
    """One step with weights that were multiplied out: what `torch.nn.LSTMCell` calls.

    Args:
        dense: weight_ih, weight_hh, and the biases if there are any.
    """

    def __init__(self, dense: Sequence[Tensor]) -> None:
        self.tensors = tuple(dense)
        self.device_type = dense[0].device.type

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Run the step, as `SingleStep` does."""
        return torch.lstm_cell(x, (h, c), *self.tensors)


def _is_short(product: Product) -> bool:
    """Whether a product is one or two plain ones, with nothing moved between them."""
    return product.entries <= SCALED_ENTRIES if product.layout is None else product.layout.is_low_rank


def _filling(weights: Operands, gates: Tensor) -> Fill:
    """The products of a step: what comes before the last operand is put side by side, so that one product finishes."""
    inputs, hidden = weights.inputs, weights.hidden
    addmm = torch.addmm
    if weights.shared:
        first_of_inputs, first, mm = inputs.operands[0], hidden.operands[0], torch.mm
        # The bias is one more row of the operand, for one more number in the middle that is always 1: no copy of it.
        finishing = torch.cat([hidden.operands[1], weights.bias[None]])
        between = gates.new_ones(len(gates), len(finishing))
        place = between[:, :-1]

        def fill_shared(x: Tensor, h: Tensor) -> None:
            mm(x, first_of_inputs, out=place)
            addmm(place, h, first, out=place)
            mm(between, finishing, out=gates)

        return fill_shared
    bias = weights.bias.repeat(len(gates), 1)
    last = torch.cat([inputs.operands[-1], hidden.operands[-1]])
    both = gates.new_empty(len(gates), len(last))
    width = len(inputs.operands[-1])
    of_inputs, of_hidden = _putting(inputs, both[:, :width]), _putting(hidden, both[:, width:])

    def fill(x: Tensor, h: Tensor) -> None:
        of_inputs(x)
        of_hidden(h)
        addmm(bias, both, last, out=gates)

    return fill


def _putting(product: Product, place: Tensor) -> Callable[[Tensor], object]:
    """What puts all but the last product of an input into a place."""
    if product.layout is None:
        return place.copy_
    first, mm = product.operands[0], torch.mm
    return lambda x: mm(x, first, out=place)

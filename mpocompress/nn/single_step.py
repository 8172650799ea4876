"""One step of one direction of an LSTM without gradients: only its products and its gate arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mpocompress.nn.buffer_pool import BufferPool
from mpocompress.nn.gates import GateUpdate, gate_update, uses_numpy
from mpocompress.nn.inference_loop import Loop
from mpocompress.nn.operands import Product
from mpocompress.nn.step_products import SCALED_ENTRIES, Operands

Fill = Callable[[Tensor, Tensor], None]
"""Takes an input and the output of the previous step, and writes the pre-activations."""


class SingleStep:
    """One step for batches of one size, with buffers that are reused from call to call.

    Several threads may call it at once; each has buffers of its own.

    Args:
        weights: operands of the direction, scaled if possible.
        cell: an example of the cell state, shape (batch, hidden), in the dtype of the operands.
    """

    def __init__(self, weights: Operands, cell: Tensor) -> None:
        self._weights = weights
        self._shape = tuple(cell.shape)
        self._dtype, self.device_type = cell.dtype, cell.device.type
        self._numpy = uses_numpy(cell)
        self._loop = Loop(weights, cell)
        self._buffers = BufferPool(self._make_buffers)
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
        """Run the step on an input in the dtype of the operands, and return the new output and cell state."""
        if not self._is_short:
            y, c = self._loop(x.unsqueeze(0), h, c)
            return y[0], c
        fill, update = buffers = self._buffers.take()
        fill(x, h)
        if self._numpy:  # numpy allocates in a third of the time
            before = (c.detach() if c.requires_grad else c).numpy()
            new_h, new_c = np.empty(self._shape, before.dtype), np.empty(self._shape, before.dtype)
            update(before, new_c, new_h)
            output, after = torch.from_numpy(new_h), torch.from_numpy(new_c)
        else:
            output, after = torch.empty_like(c), torch.empty_like(c)
            update(c, after, output)
        self._buffers.give_back(buffers)
        return output, after

    def _make_buffers(self) -> tuple[Fill, GateUpdate]:
        batch, hidden = self._shape
        with torch.inference_mode(False), torch.no_grad():  # inference tensors could be written in inference mode only
            gates = torch.empty(batch, 4 * hidden, dtype=self._dtype, device=self._weights.bias.device)
            scaled = self._weights.scale is not None
            return _filling(self._weights, gates), gate_update(gates, scaled=scaled, numpy=self._numpy)


class DenseStep:
    """One step with materialised weights, by the function that `torch.nn.LSTMCell` calls.

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
    """Return whether a product needs no reordering: a small matrix, or two operands of the low-rank shape."""
    return product.entries <= SCALED_ENTRIES if product.layout is None else product.layout.is_low_rank


def _filling(weights: Operands, gates: Tensor) -> Fill:
    """Make the products of a step; the last operands of both are stacked, so that one product completes them."""
    inputs, hidden = weights.inputs, weights.hidden
    addmm = torch.addmm
    if weights.shared:
        first_of_inputs, first, mm = inputs.operands[0], hidden.operands[0], torch.mm
        # The bias is one more row of the operand, multiplied by an intermediate entry that is always 1: no copy of it.
        last = torch.cat([hidden.operands[1], weights.bias[None]])
        intermediate = gates.new_ones(len(gates), len(last))
        factors = intermediate[:, :-1]

        def fill_shared(x: Tensor, h: Tensor) -> None:
            mm(x, first_of_inputs, out=factors)
            addmm(factors, h, first, out=factors)
            mm(intermediate, last, out=gates)

        return fill_shared
    bias = weights.bias.repeat(len(gates), 1)
    last = torch.cat([inputs.operands[-1], hidden.operands[-1]])
    both = gates.new_empty(len(gates), len(last))
    width = len(inputs.operands[-1])
    write_input, write_hidden = _writing(inputs, both[:, :width]), _writing(hidden, both[:, width:])

    def fill(x: Tensor, h: Tensor) -> None:
        write_input(x)
        write_hidden(h)
        addmm(bias, both, last, out=gates)

    return fill


def _writing(product: Product, target: Tensor) -> Callable[[Tensor], object]:
    """Make the function that writes all but the last product of an input to a target."""
    if product.layout is None:
        return target.copy_
    first, mm = product.operands[0], torch.mm
    return lambda x: mm(x, first, out=target)

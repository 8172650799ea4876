"""One direction of one level of an LSTM over a sequence, without gradients: a tight loop on prepared buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.buffer_pool import BufferPool
from mpocompress.nn.gates import GateUpdate, Native, as_native, gate_update, step_outputs, uses_numpy
from mpocompress.nn.operands import Product
from mpocompress.nn.step_products import Operands, StepProducts, steps_of

STRETCH_ENTRIES = 2**18
"""Entries that are prepared at a time, in a stretch of steps, so that they stay in a typical cache."""


class Loop:
    """One direction over sequences with the same number of rows, with buffers that are reused from call to call.

    Several threads may call it at once; each has buffers of its own.

    Args:
        weights: operands of the direction, scaled if possible.
        cell: an example of the cell state, shape (batch, hidden), in the dtype of the operands.
    """

    def __init__(self, weights: Operands, cell: Tensor) -> None:
        self._weights = weights
        self._batch, self._hidden = cell.shape
        self._numpy = uses_numpy(cell)
        self._buffers = BufferPool(self._make_buffers)

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
            reverse: whether to start with the last input.

        Returns:
            The outputs, shape (time, batch, outputs), and the last cell state; new tensors.
        """
        layout, projects = self._weights.hidden.layout, self._weights.projection is not None
        before = layout.before if layout is not None else 0
        # Every output is an input of the next step; one more row holds the output before the first step.
        states = torch.empty(len(x) + 1, self._batch, before + h.shape[1], dtype=x.dtype, device=x.device)
        outputs = states
        if before:
            states[:, :, :before] = 0
            outputs = states[:, :, before:]
        outputs[len(x) if reverse else 0] = h
        buffers = self._buffers.take()
        cell = c.clone(memory_format=torch.contiguous_format)
        state, update = as_native(cell, numpy=self._numpy), buffers.update
        views, targets = buffers.products.views(states), step_outputs(outputs, numpy=self._numpy and not projects)
        multiply, addends = buffers.products.multiply, self._addends(x, buffers.products, reverse=reverse)
        if reverse:
            for h_before, addend, target in zip(reversed(views[1:]), addends, reversed(targets[:-1]), strict=True):
                multiply(h_before, addend)
                update(state, state, target)
        else:
            for h_before, addend, target in zip(views[:-1], addends, targets[1:], strict=True):
                multiply(h_before, addend)
                update(state, state, target)
        self._buffers.give_back(buffers)
        y = outputs[:-1] if reverse else outputs[1:]
        return (y.contiguous() if before else y), cell

    def _make_buffers(self) -> _Buffers:
        weights = self._weights
        with torch.inference_mode(False), torch.no_grad():  # inference tensors could be written in inference mode only
            like = torch.empty(0, dtype=weights.bias.dtype, device=weights.bias.device)
            gates = like.new_empty(self._batch, 4 * self._hidden)
            update = gate_update(gates, scaled=weights.scale is not None, numpy=self._numpy)
            if weights.projection is not None:
                unprojected = like.new_empty(self._batch, self._hidden)
                update = _projecting(update, weights.projection, unprojected, numpy=self._numpy)
            return _Buffers(products=steps_of(weights, gates), update=update)

    def _addends(self, x: Tensor, products: StepProducts, *, reverse: bool) -> Iterator[Any]:
        """Yield the addend of every step, in the order in which the steps run, prepared a stretch at a time."""
        entries = self._batch * max(4 * self._hidden, self._weights.inputs.intermediate_entries)
        stretch = max(1, STRETCH_ENTRIES // max(entries, 1))
        starts = range(0, len(x), stretch)
        for start in reversed(starts) if reverse else starts:
            prepared = products.prepare(x[start : start + stretch])
            yield from reversed(prepared) if reverse else prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class _Buffers:
    """The functions of a run and the buffers that they write to, for one run at a time.

    Args:
        products: the products of a step, which write the pre-activations.
        update: the gate arithmetic.
    """

    products: StepProducts
    update: GateUpdate


def _projecting(update: GateUpdate, projection: Product, unprojected: Tensor, *, numpy: bool) -> GateUpdate:
    """Add a projection to a gate update."""
    target = as_native(unprojected, numpy=numpy)

    def project(before: Native, after: Native, output: Native) -> None:
        update(before, after, target)
        output.copy_(projection(unprojected))

    return project

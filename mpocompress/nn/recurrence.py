"""One direction of one level of an LSTM over a sequence, with gradients.

`recur` is an autograd function with its own backward pass: the gradient of a step is a product with each operand and
elementwise products with factors that are computed for all steps at once, and the gradient of an operand is one product
over all steps. A backward pass takes about twice as long as a forward pass, and no step adds nodes to the graph.
`recur_plainly` is the same recurrence in plain calls of torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpocompress.nn.operands import (
    OperandLayout,
    Product,
    from_row_order,
    padded,
    to_first,
    to_row_order,
    to_second,
)


def recur(
    input_part: Tensor,  # shape: (time, batch, 4 * hidden)
    h: Tensor,  # shape: (batch, outputs)
    c: Tensor,  # shape: (batch, hidden)
    hidden: Product,
    projection: Product | None,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Run over a sequence; differentiable once.

    Args:
        input_part: the input part of the pre-activations, biases included.
        h: the outputs before the first step.
        c: the cell state before the first step.
        hidden: product of the outputs of a step.
        projection: product from the output of the gates to the output of the layer; None if there is no projection.
        reverse: whether to start with the last input.

    Returns:
        The outputs, shape (time, batch, outputs), and the last cell state.
    """
    projection_operands = projection.operands if projection is not None else ()
    layouts = (hidden.layout, projection.layout if projection is not None else None)
    apply: Any = _Recurrence.apply
    outputs, cell = apply(
        input_part, h, c, layouts, reverse, len(hidden.operands), *hidden.operands, *projection_operands
    )
    return outputs, cell


class PlainRun(NamedTuple):
    """The results of `recur_plainly`; the lists have one element per step, in the order of the inputs.

    Args:
        outputs: shape (time, batch, outputs); zero where the input is padding.
        state: the last output and cell state.
        before: the outputs before every step.
        unprojected: the output of the gates of every step.
        projected: the projection of that, shape (batch, outputs); the same without a projection.
    """

    outputs: Tensor
    state: tuple[Tensor, Tensor]
    before: list[Tensor]
    unprojected: list[Tensor]
    projected: list[Tensor]


def recur_plainly(
    input_part: Tensor,  # shape: (time, batch, 4 * hidden)
    h: Tensor,  # shape: (batch, outputs)
    c: Tensor,  # shape: (batch, hidden)
    hidden: Product,
    projection: Product | None,
    *,
    reverse: bool,
    is_real: Tensor | None = None,  # shape: (time, batch)
) -> PlainRun:
    """Run over a sequence as `recur` does, in plain calls of torch, which can be exported, transformed and observed.

    Args:
        input_part: the input part of the pre-activations, biases included.
        h: the outputs before the first step.
        c: the cell state before the first step.
        hidden: product of the outputs of a step.
        projection: product from the output of the gates to the output of the layer; None if there is no projection.
        reverse: whether to start with the last input.
        is_real: which inputs are not padding, which leaves the state unchanged; None without padding.
    """
    outputs, before, unprojected, projected = [], [], [], []
    for step in range(len(input_part) - 1, -1, -1) if reverse else range(len(input_part)):
        into, forget, new, out = (input_part[step] + hidden(h)).chunk(4, dim=1)
        next_c = forget.sigmoid() * c + into.sigmoid() * new.tanh()
        gated = out.sigmoid() * next_c.tanh()
        next_h = gated if projection is None else projection(gated)
        before.append(h)
        unprojected.append(gated)
        projected.append(next_h)
        if is_real is None:
            outputs.append(next_h)
        else:
            real = is_real[step][:, None]
            next_h, next_c = torch.where(real, next_h, h), torch.where(real, next_c, c)
            outputs.append(next_h * real)
        h, c = next_h, next_c
    if reverse:
        for steps in (outputs, before, unprojected, projected):
            steps.reverse()
    return PlainRun(torch.stack(outputs), (h, c), before, unprojected, projected)


class _Recurrence(torch.autograd.Function):
    """See `recur`."""

    @staticmethod
    def forward(
        ctx: Any,
        input_part: Tensor,
        h: Tensor,
        c: Tensor,
        layouts: tuple[OperandLayout | None, OperandLayout | None],
        reverse: bool,
        count: int,
        *operands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        steps, batch, width = input_part.shape
        size = width // 4
        hidden, projection = _chains(layouts, operands, count, steps)
        gates = input_part.clone(memory_format=torch.contiguous_format)
        cells, states = input_part.new_empty(steps + 1, batch, size), input_part.new_empty(steps + 1, *h.shape)
        tanhs = input_part.new_empty(steps, batch, size)
        unprojected = tanhs if projection is None else torch.empty_like(tanhs)
        initial, source, target = (steps, 1, 0) if reverse else (0, 0, 1)
        states[initial], cells[initial] = h, c
        minus, twice = torch.full_like(tanhs[0], -1.0), torch.full_like(tanhs[0], 2.0)
        for step in range(steps - 1, -1, -1) if reverse else range(steps):
            gate = gates[step]
            gate += hidden.forward(step, states[step + source])
            into, forget, new, out = gate.chunk(4, dim=1)
            new += new
            gate.sigmoid_()
            torch.addcmul(minus, new, twice, out=new)  # tanh(x) is 2 sigmoid(2 x) - 1, and sigmoid is much faster
            cell = torch.mul(cells[step + source], forget, out=cells[step + target]).addcmul_(into, new)
            tanh = torch.add(cell, cell, out=tanhs[step]).sigmoid_()
            torch.addcmul(minus, tanh, twice, out=tanh)
            if projection is None:
                torch.mul(out, tanh, out=states[step + target])
            else:
                torch.mul(out, tanh, out=unprojected[step])
                states[step + target] = projection.forward(step, unprojected[step])
        ctx.save_for_backward(gates, cells, states, tanhs, unprojected, *operands)
        ctx.run = (reverse, hidden, projection)
        # Copies, because the caller may write to them before the backward pass.
        return (states[:steps] if reverse else states[1:]).clone(), cells[0 if reverse else steps].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_cell: Tensor) -> tuple[Tensor | None, ...]:
        gates, cells, states, tanhs, unprojected, *_ = ctx.saved_tensors
        reverse, hidden, projection = ctx.run
        steps, _, size = tanhs.shape
        before = slice(1, None) if reverse else slice(None, steps)  # the states before every step
        factors, of_cell = _factors(gates, cells[before], tanhs)
        forget = gates[:, :, size : 2 * size].unbind(0)
        inner, outer = (
            factors[:, :, : 3 * size].view(*tanhs.shape[:2], 3, size).unbind(0),
            factors[:, :, 3 * size :].unbind(0),
        )
        d_states, d_cell = torch.empty_like(states[before]), d_cell.clone()
        d_h: Tensor | None = None
        for step in range(steps) if reverse else range(steps - 1, -1, -1):
            d_state = d_states[step]
            d_state.copy_(d_outputs[step]) if d_h is None else torch.add(d_outputs[step], d_h, out=d_state)
            d_out = d_state if projection is None else projection.backward(step, d_state)
            d_cell.addcmul_(d_out, of_cell[step])
            inner[step].mul_(d_cell.unsqueeze(1))
            outer[step].mul_(d_out)
            d_cell.mul_(forget[step])
            d_h = hidden.backward(step, factors[step])
        gradients = (*hidden.gradients(states[before], factors),)
        if projection is not None:
            gradients = (*gradients, *projection.gradients(unprojected, d_states))
        return factors, d_h, d_cell, None, None, None, *gradients


def _factors(
    gates: Tensor,  # shape: (time, batch, 4 * hidden)
    cells: Tensor,  # shape: (time, batch, hidden), before every step
    tanhs: Tensor,  # shape: (time, batch, hidden), of the cell state after it
) -> tuple[Tensor, Tensor]:
    """Compute the factors of the backward pass for all steps.

    Returns:
        The factors of the gradients of the pre-activations, to be multiplied by the gradient of the cell state (input,
        forget and cell gate) or of the output (output gate); and the factor with which the gradient of the output is
        added to that of the cell state.
    """
    into, forget, new, out = gates.chunk(4, dim=2)
    factors = gates * gates
    of_into, of_forget, of_new, of_out = factors.chunk(4, dim=2)
    torch.sub(into, of_into, out=of_into).mul_(new)
    torch.sub(forget, of_forget, out=of_forget).mul_(cells)
    of_new.neg_().add_(1).mul_(into)
    torch.sub(out, of_out, out=of_out).mul_(tanhs)
    return factors, torch.addcmul(out, out * tanhs, tanhs, value=-1)


def _chains(
    layouts: tuple[OperandLayout | None, OperandLayout | None], operands: tuple[Tensor, ...], count: int, steps: int
) -> tuple[_Chain, _Chain | None]:
    hidden = _Chain(Product(operands=operands[:count], layout=layouts[0]), steps)
    projection = operands[count:]
    return hidden, _Chain(Product(operands=projection, layout=layouts[1]), steps) if projection else None


class _Chain:
    """A product at every step of a sequence, and the intermediate results that its gradients need.

    Args:
        product: the product.
        steps: length of the sequence.
    """

    def __init__(self, product: Product, steps: int) -> None:
        self.product = product
        self.steps = steps
        self.intermediates: Tensor | None = None  # (time, batch * row_2, col_1 * bond)
        self.d_inner: Tensor | None = None  # (time, batch * col_1, row_2 * bond)

    def forward(self, step: int, x: Tensor) -> Tensor:
        """Return the product at a step."""
        layout, operands = self.product.layout, self.product.operands
        if layout is None:
            return x @ operands[0]
        intermediate = to_second(padded(x, layout).reshape(-1, layout.cols[1]) @ operands[0], layout)
        if self.intermediates is None:
            self.intermediates = intermediate.new_empty(self.steps, *intermediate.shape)
        self.intermediates[step] = intermediate
        return to_row_order(intermediate @ operands[1], layout)

    def backward(self, step: int, d_y: Tensor) -> Tensor:
        """Return the gradient of the input of a step from that of its product."""
        layout, operands = self.product.layout, self.product.operands
        if layout is None:
            return d_y @ operands[0].T
        d_inner = to_first(from_row_order(d_y, layout) @ operands[1].T, layout)
        if self.d_inner is None:
            self.d_inner = d_inner.new_empty(self.steps, *d_inner.shape)
        self.d_inner[step] = d_inner
        d_x = (d_inner @ operands[0].T).reshape(len(d_y), -1)
        return d_x[:, layout.before : d_x.shape[1] - layout.behind]

    def gradients(self, x: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the operands from the inputs of all steps and the gradients of all products."""
        layout = self.product.layout
        x, d_y = x.reshape(-1, x.shape[2]), d_y.reshape(-1, d_y.shape[2])
        if layout is None:
            return (x.T @ d_y,)
        if self.intermediates is None or self.d_inner is None:
            raise RuntimeError("gradients of a product need its forward and backward pass first")
        wide = padded(x, layout).reshape(-1, layout.cols[1])
        d_first = wide.T @ self.d_inner.flatten(0, 1)
        return d_first, self.intermediates.flatten(0, 1).T @ from_row_order(d_y, layout)

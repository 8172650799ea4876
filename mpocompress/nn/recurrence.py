"""One direction of one level of an LSTM over a sequence, with gradients.

The gradient of a step is a product with each operand and a few products of numbers with factors that are computed for
all steps at once; the gradient of an operand is one product over all steps. So a backward pass takes about twice as
long as a forward one, and no step leaves nodes in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpocompress.nn.operands import Layout, Product, back, finished, forth, padded, unfinished


def recur(
    share: Tensor,  # shape: (time, batch, 4 * hidden)
    h: Tensor,  # shape: (batch, outputs)
    c: Tensor,  # shape: (batch, hidden)
    hidden: Product,
    projection: Product | None,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Run over a sequence, differentiably (once).

    Args:
        share: the inputs' share of the pre-activations, biases included.
        h: the outputs before the first step.
        c: the cell state before the first step.
        hidden: the product of the outputs of a step.
        projection: of what the gates let out to the outputs; None where that is the output.
        reverse: whether the last input comes first.

    Returns:
        The outputs, shape (time, batch, outputs), and the last cell state.
    """
    more = projection.operands if projection is not None else ()
    layouts = (hidden.layout, projection.layout if projection is not None else None)
    apply: Any = _Recurrence.apply
    outputs, cell = apply(share, h, c, layouts, reverse, len(hidden.operands), *hidden.operands, *more)
    return outputs, cell


def recur_plainly(
    share: Tensor,  # shape: (time, batch, 4 * hidden)
    h: Tensor,  # shape: (batch, outputs)
    c: Tensor,  # shape: (batch, hidden)
    hidden: Product,
    projection: Product | None,
    *,
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The same as `recur` in plain calls of torch, which can be recorded, exported and transformed.

    Args:
        share: the inputs' share of the pre-activations, biases included.
        h: the outputs before the first step.
        c: the cell state before the first step.
        hidden: the product of the outputs of a step.
        projection: of what the gates let out to the outputs; None where that is the output.
        reverse: whether the last input comes first.

    Returns:
        The outputs, shape (time, batch, outputs), and the last output and cell state.
    """
    outputs = []
    for step in range(len(share) - 1, -1, -1) if reverse else range(len(share)):
        into, forget, new, out = (share[step] + hidden(h)).chunk(4, dim=1)
        c = forget.sigmoid() * c + into.sigmoid() * new.tanh()
        h = out.sigmoid() * c.tanh()
        h = h if projection is None else projection(h)
        outputs.append(h)
    return torch.stack(outputs[::-1] if reverse else outputs), (h, c)


class _Recurrence(torch.autograd.Function):
    """See `recur`."""

    @staticmethod
    def forward(
        ctx: Any,
        share: Tensor,
        h: Tensor,
        c: Tensor,
        layouts: tuple[Layout | None, Layout | None],
        reverse: bool,
        count: int,
        *operands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        steps, batch, width = share.shape
        size = width // 4
        hidden, projection = _chains(layouts, operands, count, steps)
        gates = share.clone(memory_format=torch.contiguous_format)
        cells, states = share.new_empty(steps + 1, batch, size), share.new_empty(steps + 1, *h.shape)
        tanhs = share.new_empty(steps, batch, size)
        let_out = tanhs if projection is None else torch.empty_like(tanhs)
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
                torch.mul(out, tanh, out=let_out[step])
                states[step + target] = projection.forward(step, let_out[step])
        ctx.save_for_backward(gates, cells, states, tanhs, let_out, *operands)
        ctx.made = (reverse, hidden, projection)
        # Copies: what is handed out may be written to before the gradients are taken.
        return (states[:steps] if reverse else states[1:]).clone(), cells[0 if reverse else steps].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_cell: Tensor) -> tuple[Tensor | None, ...]:
        gates, cells, states, tanhs, let_out, *_ = ctx.saved_tensors
        reverse, hidden, projection = ctx.made
        steps, _, size = tanhs.shape
        before = slice(1, None) if reverse else slice(None, steps)  # the states that the steps started from
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
            gradients = (*gradients, *projection.gradients(let_out, d_states))
        return factors, d_h, d_cell, None, None, None, *gradients


def _factors(
    gates: Tensor,  # shape: (time, batch, 4 * hidden)
    cells: Tensor,  # shape: (time, batch, hidden), before every step
    tanhs: Tensor,  # shape: (time, batch, hidden), of the cell state after it
) -> tuple[Tensor, Tensor]:
    """What the gradients are multiplied with.

    Those of the pre-activations are these times that of the cell state (input, forget and cell gate) or of the output
    (output gate); that of the cell state gains the second times that of the output.
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
    layouts: tuple[Layout | None, Layout | None], operands: tuple[Tensor, ...], count: int, steps: int
) -> tuple[_Chain, _Chain | None]:
    hidden = _Chain(Product(operands=operands[:count], layout=layouts[0]), steps)
    more = operands[count:]
    return hidden, _Chain(Product(operands=more, layout=layouts[1]), steps) if more else None


class _Chain:
    """A product at every step of a sequence, with what its gradients need.

    Args:
        product: what is multiplied with.
        steps: length of the sequence.
    """

    def __init__(self, product: Product, steps: int) -> None:
        self.product = product
        self.steps = steps
        self.middles: Tensor | None = None  # (time, batch * row_2, col_1 * bond)
        self.inner: Tensor | None = None  # gradients, (time, batch * col_1, row_2 * bond)

    def forward(self, step: int, x: Tensor) -> Tensor:
        """The product at a step."""
        layout, operands = self.product.layout, self.product.operands
        if layout is None:
            return x @ operands[0]
        between = forth(padded(x, layout).reshape(-1, layout.cols[1]) @ operands[0], layout)
        self.middles = between.new_empty(self.steps, *between.shape) if self.middles is None else self.middles
        self.middles[step] = between
        return finished(between @ operands[1], layout)

    def backward(self, step: int, d_y: Tensor) -> Tensor:
        """The gradient of the input of a step from that of its product."""
        layout, operands = self.product.layout, self.product.operands
        if layout is None:
            return d_y @ operands[0].T
        d_inner = back(unfinished(d_y, layout) @ operands[1].T, layout)
        self.inner = d_inner.new_empty(self.steps, *d_inner.shape) if self.inner is None else self.inner
        self.inner[step] = d_inner
        d_x = (d_inner @ operands[0].T).reshape(len(d_y), -1)
        return d_x[:, layout.before : d_x.shape[1] - layout.behind]

    def gradients(self, x: Tensor, d_y: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the operands, from the inputs of all steps and the gradients of all products."""
        layout = self.product.layout
        x, d_y = x.reshape(-1, x.shape[2]), d_y.reshape(-1, d_y.shape[2])
        if layout is None:
            return (x.T @ d_y,)
        if self.middles is None or self.inner is None:
            raise RuntimeError("gradients of a product that has not run")
        wide = padded(x, layout).reshape(-1, layout.cols[1])
        d_first = wide.T @ self.inner.flatten(0, 1)
        return d_first, self.middles.flatten(0, 1).T @ unfinished(d_y, layout)

"""The products of one step of an LSTM, in place: every buffer and view is made before the first step.

The product with the inputs is taken out of the loop, for a stretch of steps at once, in one of three forms:

- *added*: the inputs' share of the pre-activations is computed beforehand, and the product of every step adds to it.
- *stacked*: where both weights have the same row dims, the middle of the inputs' product is put beside that of the
  outputs', and one product finishes both. There is less to write and read where the batch is large.
- *shared*: in a joint matrix of the low-rank shape both middles mean the same, and are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.operands import Layout, Product, middle

STACKED_ENTRIES = 2**15
"""From this many pre-activations a step on, the stacked form pays."""
SCALED_ENTRIES = 2**16
"""A dense matrix of up to this many entries is copied to have its rows scaled."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operands:
    """The weights of one direction of one level, ready to be multiplied with.

    Args:
        inputs: of the inputs to the gates.
        hidden: of the outputs to the gates.
        bias: the sum of both biases, shape (4 * hidden,).
        projection: of what the gates let out to the outputs; None where there is none.
        shared: whether both products end with the same operand: a joint matrix of the low-rank shape.
        scale: what the rows of the gates have been multiplied with; None where they are as they were.
    """

    inputs: Product
    hidden: Product
    bias: Tensor
    projection: Product | None = None
    shared: bool = False
    scale: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All operands and the bias."""
        projection = self.projection.operands if self.projection is not None else ()
        return (*self.inputs.operands, *self.hidden.operands, self.bias, *projection)

    def scaled(self, scale: Tensor) -> Operands:
        """The same with the rows of the gates multiplied by numbers; itself where its operands cannot hold them.

        Args:
            scale: shape (4 * hidden,).

        Returns:
            The weights.
        """
        if self.hidden.layout is None and self.hidden.entries > SCALED_ENTRIES:
            return self
        inputs, hidden = self.inputs.scaled(scale), self.hidden.scaled(scale)
        if inputs is None or hidden is None:
            return self
        return Operands(
            inputs=inputs,
            hidden=hidden,
            bias=self.bias * scale,
            projection=self.projection,
            shared=self.shared,
            scale=scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """The products of the steps of one direction.

    Args:
        prepare: takes the inputs of a stretch of steps, shape (steps, batch, inputs), and gives what every one needs.
        multiply: takes a view of the outputs before a step and what was prepared for it; leaves the pre-activations.
        seen: takes all outputs, shape (steps, batch, before + outputs), and gives the views.
    """

    prepare: Callable[[Tensor], Sequence[Any]]
    multiply: Callable[[Tensor, Any], None]
    seen: Callable[[Tensor], Sequence[Tensor]]


def steps_of(weights: Operands, gates: Tensor) -> Steps:
    """The products of the steps of a direction, in the form that suits it.

    Args:
        weights: of the direction.
        gates: where the pre-activations go, shape (batch, 4 * hidden).

    Returns:
        The products.
    """
    inputs, hidden = weights.inputs.layout, weights.hidden.layout
    if hidden is None:
        return _dense(weights, gates)
    if weights.shared:
        return _shared(weights, gates)
    fits = inputs is not None and inputs.rows == hidden.rows and inputs.in_order and hidden.in_order
    if fits and gates.numel() >= STACKED_ENTRIES:
        return _stacked(weights, gates)
    return _added(weights, gates)


def _dense(weights: Operands, gates: Tensor) -> Steps:
    """The hidden weight is a matrix."""
    (transposed,) = weights.hidden.operands
    prepare = _adding(weights)
    if len(gates) > 1:
        addmm = torch.addmm

        def multiply(h: Tensor, addend: Tensor) -> None:
            addmm(addend, h, transposed, out=gates)

        return Steps(prepare=lambda x: prepare(x).unbind(0), multiply=multiply, seen=lambda states: states.unbind(0))
    weight, row, addmv = transposed.T, gates[0], torch.addmv

    def multiply_one(h: Tensor, addend: Tensor) -> None:
        addmv(addend, weight, h, out=row)

    return Steps(prepare=lambda x: prepare(x)[:, 0].unbind(0), multiply=multiply_one, seen=_single)


def _added(weights: Operands, gates: Tensor) -> Steps:
    """The inputs' share of the pre-activations is computed for a stretch of steps at once."""
    layout, (first, second) = _laid(weights.hidden)
    prepare, into_middle = _adding(weights), _middle(layout, first, len(gates))
    between = gates.new_empty(len(gates) * layout.rows[1], layout.cols[0] * layout.bond)
    seen = _single if layout.is_low_rank and len(gates) == 1 else _blocks(layout)
    addmm = torch.addmm
    if layout.in_order:
        outer = gates.view(-1, layout.rows[0])

        def multiply(h: Tensor, addend: Tensor) -> None:
            into_middle(h, between)
            addmm(addend, between, second, out=outer)

        return Steps(
            prepare=lambda x: prepare(x).view(len(x), -1, layout.rows[0]).unbind(0), multiply=multiply, seen=seen
        )
    product = gates.new_empty(len(gates) * layout.rows[1], layout.rows[0])
    turned = product.view(-1, layout.rows[1], layout.rows[0]).transpose(1, 2)
    ordered = gates.view(-1, *layout.rows)
    mm, add = torch.mm, torch.add

    def multiply_turned(h: Tensor, addend: Tensor) -> None:
        into_middle(h, between)
        mm(between, second, out=product)
        add(addend, turned, out=ordered)

    return Steps(
        prepare=lambda x: prepare(x).view(len(x), -1, *layout.rows).unbind(0), multiply=multiply_turned, seen=seen
    )


def _shared(weights: Operands, gates: Tensor) -> Steps:
    """The middles of both products are added."""
    layout, (first, second) = _laid(weights.hidden)
    first_of_inputs = weights.inputs.operands[0]
    addmm = torch.addmm
    if len(gates) == 1:
        # The bias is one more row of the operand, for one more number in the middle that is always 1: no copy of it.
        finishing, between = torch.cat([second, weights.bias[None]]), gates.new_ones(1, layout.bond + 1)
        wide, row, addmv, mm = first.T.contiguous(), between[0, :-1], torch.addmv, torch.mm

        def multiply_one(h: Tensor, addend: Tensor) -> None:
            addmv(addend, wide, h, out=row)
            mm(between, finishing, out=gates)

        return Steps(
            prepare=lambda x: torch.mm(x.reshape(len(x), -1), first_of_inputs).unbind(0),
            multiply=multiply_one,
            seen=_single,
        )
    bias, between = weights.bias.repeat(len(gates), 1), gates.new_empty(len(gates), layout.bond)

    def multiply(h: Tensor, addend: Tensor) -> None:
        addmm(addend, h, first, out=between)
        addmm(bias, between, second, out=gates)

    def prepare(x: Tensor) -> Sequence[Tensor]:
        return torch.mm(x.reshape(-1, x.shape[2]), first_of_inputs).view(*x.shape[:2], -1).unbind(0)

    return Steps(prepare=prepare, multiply=multiply, seen=lambda states: states.unbind(0))


def _stacked(weights: Operands, gates: Tensor) -> Steps:
    """The middle of the inputs' product is put beside that of the outputs', and one product finishes both."""
    layout, (first, second) = _laid(weights.hidden)
    of_inputs, (first_of_inputs, second_of_inputs) = _laid(weights.inputs)
    stacked = torch.cat([second_of_inputs, second])
    bias = weights.bias.repeat(len(gates), 1).view(-1, layout.rows[0])
    into_middle, width = _middle(layout, first, len(gates), strided=True), len(second_of_inputs)
    outer, addmm = gates.view(-1, layout.rows[0]), torch.addmm

    def multiply(h: Tensor, pair: tuple[Tensor, Tensor]) -> None:
        both, place = pair
        into_middle(h, place)
        addmm(bias, both, stacked, out=outer)

    def prepare(x: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        both = x.new_empty(len(x), len(gates) * layout.rows[1], len(stacked))
        both[:, :, :width] = middle(x.reshape(-1, x.shape[2]), first_of_inputs, of_inputs).view(*both.shape[:2], width)
        return list(zip(both.unbind(0), both[:, :, width:].unbind(0), strict=True))

    return Steps(prepare=prepare, multiply=multiply, seen=_blocks(layout))


def _adding(weights: Operands) -> Callable[[Tensor], Tensor]:
    """What gives the inputs' share of the pre-activations, the bias in it: shape (steps, batch, 4 * hidden)."""

    def prepare(x: Tensor) -> Tensor:
        share = weights.inputs(x.reshape(-1, x.shape[2]))
        return share.add_(weights.bias).view(*x.shape[:2], -1)

    return prepare


def _middle(layout: Layout, first: Tensor, batch: int, *, strided: bool = False) -> Callable[[Tensor, Tensor], None]:
    """What puts the first product of a step into a place of shape (batch * row_2, col_1 * bond)."""
    mm, mv = torch.mm, torch.mv
    if layout.is_low_rank and batch == 1 and not strided:
        wide = first.T.contiguous()

        def single(h: Tensor, place: Tensor) -> None:
            mv(wide, h, out=place[0])

        return single
    if layout.is_low_rank:

        def several(h: Tensor, place: Tensor) -> None:
            mm(h, first, out=place)

        return several
    col, row = layout.cols[0], layout.rows[1]
    inner = first.new_empty(batch * col, row * layout.bond)
    moved = inner.view(batch, col, row, layout.bond).transpose(1, 2)

    def two(h: Tensor, place: Tensor) -> None:
        mm(h, first, out=inner)
        place.view(moved.shape).copy_(moved)

    return two


def _blocks(layout: Layout) -> Callable[[Tensor], Sequence[Tensor]]:
    """What gives the views of the outputs that the first product takes."""
    return lambda states: states.view(len(states), -1, layout.cols[1]).unbind(0)


def _single(states: Tensor) -> Sequence[Tensor]:
    """The only row of every step."""
    return states.view(len(states), -1).unbind(0)


def _laid(product: Product) -> tuple[Layout, tuple[Tensor, ...]]:
    """The layout and the operands of a product that is known to have two."""
    if product.layout is None:
        raise ValueError("a matrix has no layout")
    return product.layout, product.operands

"""The products of one step of an LSTM, in place: all buffers and views are made before the first step.

The product with the inputs is computed outside of the loop, for a stretch of steps at once, in one of three forms:

- *added*: the input part of the pre-activations is computed first, and the product of every step adds to it.
- *stacked*: if both weights have the same row dims, the intermediate results of both products are stored side by side,
  and one product completes both. This reads and writes less memory if the batch is large.
- *shared*: in a joint matrix of the low-rank shape, both intermediate results have the same basis, and are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.operands import OperandLayout, Product, first_product

STACKED_ENTRIES = 2**15
"""Fewest pre-activations of a step for which the stacked form is used."""
SCALED_ENTRIES = 2**16
"""Largest dense matrix of which a copy with scaled rows is made, in entries."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operands:
    """The operands of one direction of one level.

    Args:
        inputs: from the inputs to the gates.
        hidden: from the outputs to the gates.
        bias: the sum of both biases, shape (4 * hidden,).
        projection: from the output of the gates to the output of the layer; None if there is no projection.
        shared: whether both products end with the same operand, as in a joint matrix of the low-rank shape.
        scale: factors that the rows of the gates are multiplied by; None if they are not scaled.
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
        """Return the operands with scaled rows of the gates; the operands themselves if they cannot represent it.

        Args:
            scale: factors, shape (4 * hidden,).
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
class StepProducts:
    """The products of the steps of one direction.

    Args:
        prepare: takes the inputs of a stretch of steps, shape (steps, batch, inputs); returns an addend for every step.
        multiply: takes a view of the outputs before a step and its addend; writes the pre-activations.
        views: takes all outputs, shape (steps, batch, before + outputs); returns the view of every step.
    """

    prepare: Callable[[Tensor], Sequence[Any]]
    multiply: Callable[[Tensor, Any], None]
    views: Callable[[Tensor], Sequence[Tensor]]


def steps_of(weights: Operands, gates: Tensor) -> StepProducts:
    """Choose the form of the products of a direction, and make them.

    Args:
        weights: operands of the direction.
        gates: receives the pre-activations, shape (batch, 4 * hidden).
    """
    inputs, hidden = weights.inputs.layout, weights.hidden.layout
    if hidden is None:
        return _dense(weights, gates)
    if weights.shared:
        return _shared(weights, hidden, gates)
    is_large = gates.numel() >= STACKED_ENTRIES
    if is_large and inputs is not None and inputs.rows == hidden.rows and inputs.in_order and hidden.in_order:
        return _stacked(weights, inputs, hidden, gates)
    return _added(weights, hidden, gates)


def _dense(weights: Operands, gates: Tensor) -> StepProducts:
    """Make the products for a hidden weight that is a matrix."""
    (transposed,) = weights.hidden.operands
    prepare = _input_part(weights)
    if len(gates) > 1:
        addmm = torch.addmm

        def multiply(h: Tensor, addend: Tensor) -> None:
            addmm(addend, h, transposed, out=gates)

        return StepProducts(
            prepare=lambda x: prepare(x).unbind(0), multiply=multiply, views=lambda states: states.unbind(0)
        )
    weight, row, addmv = transposed.T, gates[0], torch.addmv

    def multiply_one(h: Tensor, addend: Tensor) -> None:
        addmv(addend, weight, h, out=row)

    return StepProducts(prepare=lambda x: prepare(x)[:, 0].unbind(0), multiply=multiply_one, views=_single)


def _added(weights: Operands, layout: OperandLayout, gates: Tensor) -> StepProducts:
    """Make the products in the added form."""
    first, second = weights.hidden.operands
    prepare, multiply_first = _input_part(weights), _first_product_into(layout, first, len(gates))
    intermediate = gates.new_empty(len(gates) * layout.rows[1], layout.cols[0] * layout.bond)
    views = _single if layout.is_low_rank and len(gates) == 1 else _blocks(layout)
    addmm = torch.addmm
    if layout.in_order:
        outer = gates.view(-1, layout.rows[0])

        def multiply(h: Tensor, addend: Tensor) -> None:
            multiply_first(h, intermediate)
            addmm(addend, intermediate, second, out=outer)

        return StepProducts(
            prepare=lambda x: prepare(x).view(len(x), -1, layout.rows[0]).unbind(0), multiply=multiply, views=views
        )
    product = gates.new_empty(len(gates) * layout.rows[1], layout.rows[0])
    turned = product.view(-1, layout.rows[1], layout.rows[0]).transpose(1, 2)
    ordered = gates.view(-1, *layout.rows)
    mm, add = torch.mm, torch.add

    def multiply_turned(h: Tensor, addend: Tensor) -> None:
        multiply_first(h, intermediate)
        mm(intermediate, second, out=product)
        add(addend, turned, out=ordered)

    return StepProducts(
        prepare=lambda x: prepare(x).view(len(x), -1, *layout.rows).unbind(0), multiply=multiply_turned, views=views
    )


def _shared(weights: Operands, layout: OperandLayout, gates: Tensor) -> StepProducts:
    """Make the products in the shared form."""
    first, second = weights.hidden.operands
    first_of_inputs = weights.inputs.operands[0]
    addmm = torch.addmm
    if len(gates) == 1:
        # The bias is one more row of the operand, multiplied by an intermediate entry that is always 1: no copy of it.
        last, intermediate = torch.cat([second, weights.bias[None]]), gates.new_ones(1, layout.bond + 1)
        wide, row, addmv, mm = first.T.contiguous(), intermediate[0, :-1], torch.addmv, torch.mm

        def multiply_one(h: Tensor, addend: Tensor) -> None:
            addmv(addend, wide, h, out=row)
            mm(intermediate, last, out=gates)

        return StepProducts(
            prepare=lambda x: torch.mm(x.reshape(len(x), -1), first_of_inputs).unbind(0),
            multiply=multiply_one,
            views=_single,
        )
    bias, intermediate = weights.bias.repeat(len(gates), 1), gates.new_empty(len(gates), layout.bond)

    def multiply(h: Tensor, addend: Tensor) -> None:
        addmm(addend, h, first, out=intermediate)
        addmm(bias, intermediate, second, out=gates)

    def prepare(x: Tensor) -> Sequence[Tensor]:
        return torch.mm(x.reshape(-1, x.shape[2]), first_of_inputs).view(*x.shape[:2], -1).unbind(0)

    return StepProducts(prepare=prepare, multiply=multiply, views=lambda states: states.unbind(0))


def _stacked(weights: Operands, input_layout: OperandLayout, layout: OperandLayout, gates: Tensor) -> StepProducts:
    """Make the products in the stacked form."""
    first, second = weights.hidden.operands
    first_of_inputs, second_of_inputs = weights.inputs.operands
    stacked = torch.cat([second_of_inputs, second])
    bias = weights.bias.repeat(len(gates), 1).view(-1, layout.rows[0])
    multiply_first, width = _first_product_into(layout, first, len(gates), strided=True), len(second_of_inputs)
    outer, addmm = gates.view(-1, layout.rows[0]), torch.addmm

    def multiply(h: Tensor, pair: tuple[Tensor, Tensor]) -> None:
        both, place = pair
        multiply_first(h, place)
        addmm(bias, both, stacked, out=outer)

    def prepare(x: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        both = x.new_empty(len(x), len(gates) * layout.rows[1], len(stacked))
        both[:, :, :width] = first_product(x.reshape(-1, x.shape[2]), first_of_inputs, input_layout).view(
            *both.shape[:2], width
        )
        return list(zip(both.unbind(0), both[:, :, width:].unbind(0), strict=True))

    return StepProducts(prepare=prepare, multiply=multiply, views=_blocks(layout))


def _input_part(weights: Operands) -> Callable[[Tensor], Tensor]:
    """Make the function of the input part of the pre-activations with the bias, shape (steps, batch, 4 * hidden)."""

    def prepare(x: Tensor) -> Tensor:
        products = weights.inputs(x.reshape(-1, x.shape[2]))
        return products.add_(weights.bias).view(*x.shape[:2], -1)

    return prepare


def _first_product_into(
    layout: OperandLayout, first: Tensor, batch: int, *, strided: bool = False
) -> Callable[[Tensor, Tensor], None]:
    """Make the function that writes the intermediate result of a step, of shape (batch * row_2, col_1 * bond)."""
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


def _blocks(layout: OperandLayout) -> Callable[[Tensor], Sequence[Tensor]]:
    """Make the function of the views of the outputs that the first product takes."""
    return lambda states: states.view(len(states), -1, layout.cols[1]).unbind(0)


def _single(states: Tensor) -> Sequence[Tensor]:
    """Return the only row of every step."""
    return states.view(len(states), -1).unbind(0)

"""A parameter budget shared out over all layers: which form, which site shape and which bonds for every matrix."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpocompress.layers.specs import LayerSpec, MatrixSpec
from mpocompress.planning.curves import Curve

_LEVEL = re.compile(r"_l(\d+)(?:_reverse)?$")


def first_in_stacks(layers: Sequence[LayerSpec]) -> tuple[tuple[int, ...], ...]:
    """The layers that come first in a stack of numbered ones, told from their names.

    A stack is what differs in one number: the levels of an LSTM (`weight_hh_l0`, `weight_hh_l1`), or modules such as
    `encoder.layer.0` and `encoder.layer.1`. Of nested stacks the outermost counts.

    Args:
        layers: the layers, in file order.

    Returns:
        For every stack of two or more, the positions in `layers` of those with the lowest number.

    Example:
        >>> from mpocompress.layers.specs import LayerSpec, MatrixSpec, Member
        >>> weight = Member(name="net.0.weight", shape=(8, 8), dtype="float32")
        >>> first, second = (
        ...     LayerSpec(name=name, kind="linear", forms=((MatrixSpec(name=f"{name}.weight", members=(weight,)),),))
        ...     for name in ("net.0", "net.2")
        ... )
        >>> first_in_stacks([first, second])
        ((0,),)
    """
    depths: dict[str, set[int]] = {}
    for layer in layers:
        for stack, depth in _numbers(layer):
            depths.setdefault(stack, set()).add(depth)
    first: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        outermost = next(((stack, depth) for stack, depth in _numbers(layer) if len(depths[stack]) > 1), None)
        if outermost is not None and outermost[1] == min(depths[outermost[0]]):
            first.setdefault(outermost[0], []).append(position)
    return tuple(tuple(positions) for positions in first.values())


def _numbers(layer: LayerSpec) -> list[tuple[str, int]]:
    """The stacks a layer may belong to and its number in each, outermost first."""
    parts = layer.name.split(".")
    found = [(".".join(parts[:place]), int(part)) for place, part in enumerate(parts) if part.isdecimal()]
    level = _LEVEL.search(layer.forms[0][0].name)
    return found if level is None else [*found, (f"{layer.name} levels", int(level[1]))]


PROTECTED_SHARE = 0.5
"""Share of a budget that the first layers of stacks may take whole."""


PROTECTED = "the first of a stack of layers: what it loses, all later ones get"


WHOLE = "the budget is best spent on keeping it whole"


LOWEST_PRICE, HIGHEST_PRICE, PRICE_STEPS = -60.0, 10.0, 60
"""The price per parameter is looked for between these powers of ten, by halving their range so many times."""


LEAST_ENERGY = 1e-6
"""Share of the energy of a matrix below which keeping still less is no worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a budget gives to one matrix.

    Args:
        matrix: the matrix.
        curve: its site shape; None where it stays dense.
        bonds: a bond for every cut; empty where it stays dense.
        parameters: what it costs.
        reason: why it stays dense; empty where it does not.
    """

    matrix: MatrixSpec
    curve: Curve | None
    bonds: tuple[int, ...]
    parameters: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frontier:
    """Every useful way to store one matrix, cheapest first; the last one is dense.

    Args:
        matrix: the matrix.
        choices: index of the curve and cap of each way; (-1, 0) for dense.
        curves: the site shapes.
        parameters: cost of each way, rising.
        losses: loss of each way, falling.
    """

    matrix: MatrixSpec
    choices: NDArray[np.int64]
    curves: tuple[Curve, ...]
    parameters: NDArray[np.int64]
    losses: NDArray[np.float64]

    def best(self, price: float) -> int:
        """The way with the least loss plus price times parameters; of equals the cheapest."""
        return int(np.argmin(self.losses + price * self.parameters))

    def choice(self, index: int) -> Choice:
        """The way at an index."""
        curve_index, cap = (int(value) for value in self.choices[index])
        curve = self.curves[curve_index] if curve_index >= 0 else None
        return Choice(
            matrix=self.matrix,
            curve=curve,
            bonds=curve.sites.capped(cap) if curve is not None else (),
            parameters=int(self.parameters[index]),
            reason="" if curve is not None else PROTECTED if len(self.parameters) == 1 else WHOLE,
        )


def least_parameters(layers: Sequence[LayerSpec], curves: Mapping[str, Sequence[Curve]]) -> int:
    """The fewest parameters that all layers together can be brought to.

    Args:
        layers: the layers.
        curves: the candidate shapes of every matrix of every form.

    Returns:
        The sum over the layers, each in its smallest form.
    """
    return sum(
        min(sum(_least(matrix, curves[matrix.name]) for matrix in form) for form in layer.forms) for layer in layers
    )


def _least(matrix: MatrixSpec, curves: Sequence[Curve]) -> int:
    """The fewest parameters one matrix can be stored with."""
    ones = (curve.sites.parameters(curve.sites.capped(1)) for curve in curves)
    return min(matrix.dense_parameters, *ones) if curves else matrix.dense_parameters


def spread(
    layers: Sequence[LayerSpec],
    curves: Mapping[str, Sequence[Curve]],
    budget: int,
) -> tuple[Choice, ...]:
    """Share a parameter budget out over the layers.

    A signal passes one matrix after another, so what matters is the product of the energies that the matrices keep: the
    loss is the sum over all tensors of -log(1 - squared relative error). What the first layer loses, every later one
    gets, which no weight error shows: the first of a stack of layers stays dense where that takes at most half of the
    budget. Where the loss of the model was measured with data, that is the loss, and no layer is kept dense unasked.
    One price per parameter is found at which
    all layers, each choosing its form, site shape and bonds for itself, just fit the budget (a Lagrangian relaxation);
    what the price leaves over is then spent step by step where it lowers the loss most for its parameters, until no
    bond of any matrix can be raised. docs/explanation/truncation.md shows what this was measured against.

    Args:
        layers: the layers.
        curves: the candidate shapes of every matrix of every form, by matrix name.
        budget: parameters that all layers together may have; at least `least_parameters`.

    Returns:
        One choice for every matrix of the chosen forms, in the order of the layers.

    Source:
        Everett 1963, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources",
        Operations Research 11(3), doi:10.1287/opre.11.3.399.
    """
    measured = any(len(curve.losses) for found in curves.values() for curve in found)
    dense = frozenset() if measured else _protected(layers, budget, least_parameters(layers, curves))
    frontiers = [
        [
            [_frontier(matrix, () if position in dense else curves[matrix.name]) for matrix in form]
            for form in layer.forms
        ]
        for position, layer in enumerate(layers)
    ]
    forms = _cheapest_that_fits(frontiers, budget)
    _fill(forms, budget)
    return tuple(frontier.choice(index) for form in forms for frontier, index in form)


def _protected(layers: Sequence[LayerSpec], budget: int, least: int) -> frozenset[int]:
    """Positions of the layers that stay dense because they come first in a stack."""
    room = min(budget * PROTECTED_SHARE, budget - least)
    found: set[int] = set()
    for positions in first_in_stacks(layers):
        cost = sum(layers[position].dense_parameters for position in positions)
        if cost <= room:
            room -= cost
            found.update(positions)
    return frozenset(found)


_Form = list[tuple[_Frontier, int]]


def _cheapest_that_fits(frontiers: Sequence[Sequence[Sequence[_Frontier]]], budget: int) -> list[_Form]:
    """The forms and ways at the lowest price per parameter whose sum is within the budget."""
    free = [_best_form(forms, 0.0) for forms in frontiers]
    if sum(map(_size, free)) <= budget:
        return free
    low, high = LOWEST_PRICE, HIGHEST_PRICE
    cheap = [_best_form(forms, 10.0**high) for forms in frontiers]
    dear = [_best_form(forms, 10.0**low) for forms in frontiers]
    total = sum(map(_size, cheap))
    open_rows = list(range(len(frontiers)))
    for _ in range(PRICE_STEPS):
        # A choice that is best at both ends of a range of prices is so in between.
        open_rows = [row for row in open_rows if not _same(cheap[row], dear[row])]
        middle = (low + high) / 2
        tried = {row: _best_form(frontiers[row], 10.0**middle) for row in open_rows}
        change = sum(_size(form) - _size(cheap[row]) for row, form in tried.items())
        if total + change <= budget:
            high, total = middle, total + change
            end = cheap
        else:
            low, end = middle, dear
        for row, form in tried.items():
            end[row] = form
    if total <= budget:
        return cheap
    return [min(([(frontier, 0) for frontier in form] for form in forms), key=_size) for forms in frontiers]


def _best_form(forms: Sequence[Sequence[_Frontier]], price: float) -> _Form:
    if len(forms) == 1:
        return _priced(forms[0], price)
    return min((_priced(form, price) for form in forms), key=lambda one: _cost(one, price))


def _size(form: _Form) -> int:
    return sum(int(frontier.parameters[index]) for frontier, index in form)


def _same(one: _Form, other: _Form) -> bool:
    return len(one) == len(other) and all(
        left[0] is right[0] and left[1] == right[1] for left, right in zip(one, other, strict=True)
    )


def _priced(form: Sequence[_Frontier], price: float) -> _Form:
    return [(frontier, frontier.best(price)) for frontier in form]


def _cost(form: _Form, price: float) -> float:
    return sum(float(frontier.losses[index] + price * frontier.parameters[index]) for frontier, index in form)


def _fill(forms: list[_Form], budget: int) -> None:
    """Spend what is left of the budget, best gain per parameter first, until no step fits."""
    left = budget - sum(int(frontier.parameters[index]) for form in forms for frontier, index in form)
    steps: list[tuple[float, int, int]] = []

    def offer(row: int, column: int) -> None:
        frontier, index = forms[row][column]
        if index + 1 < len(frontier.parameters):
            cost = int(frontier.parameters[index + 1] - frontier.parameters[index])
            gain = float(frontier.losses[index] - frontier.losses[index + 1])
            heapq.heappush(steps, (-gain / cost, row, column))

    for row, form in enumerate(forms):
        for column in range(len(form)):
            offer(row, column)
    while steps:
        _, row, column = heapq.heappop(steps)
        frontier, index = forms[row][column]
        cost = int(frontier.parameters[index + 1] - frontier.parameters[index])
        if cost <= left:
            left -= cost
            forms[row][column] = (frontier, index + 1)
            offer(row, column)


def _frontier(matrix: MatrixSpec, curves: Sequence[Curve]) -> _Frontier:
    """All ways to store a matrix that no other way beats in both cost and loss."""
    choices = [np.array([[-1, 0]])]
    parameters = [np.array([matrix.dense_parameters])]
    losses = [np.array([0.0])]
    for position, curve in enumerate(curves):
        cost_of, squares = curve.table(len(matrix.members))
        caps = np.arange(1, len(cost_of) + 1)
        choices.append(np.stack([np.full_like(caps, position), caps], axis=1))
        parameters.append(cost_of)
        known = -np.log(np.maximum(1.0 - squares, LEAST_ENERGY)).sum(axis=0)
        losses.append(curve.losses if len(curve.losses) else known)
    every, cost, loss = np.concatenate(choices), np.concatenate(parameters), np.concatenate(losses)
    order = np.lexsort((loss, cost))
    lowest = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    useful = order[loss[order] < lowest]
    return _Frontier(
        matrix=matrix, choices=every[useful], curves=tuple(curves), parameters=cost[useful], losses=loss[useful]
    )

"""Share a parameter budget among all layers: choose the form, site shape and bonds of every matrix."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpocompress.layers.specs import LayerSpec, MatrixSpec
from mpocompress.planning.curves import ErrorCurve

PROTECTED_SHARE = 0.5
"""Share of a budget that the first layers of stacks may take, stored dense."""
PROTECTED = "the first of a stack of layers: its errors reach all later layers"
WHOLE = "under this budget, keeping it dense is best"
LOWEST_PRICE, HIGHEST_PRICE, PRICE_STEPS = -60.0, 10.0, 60
"""Range of the price per parameter, as powers of ten, and the number of bisections of it."""
LEAST_ENERGY = 1e-6
"""Lower limit of the energy kept in a matrix, in the loss: below it the loss is constant."""

_LEVEL = re.compile(r"_l(\d+)(?:_reverse)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetShare:
    """The share of one matrix in a budget.

    Args:
        matrix: the matrix.
        curve: its site shape; None if it stays dense.
        bonds: one bond per cut; empty if it stays dense.
        parameters: its number of parameters.
        reason: why it stays dense; empty if it does not.
    """

    matrix: MatrixSpec
    curve: ErrorCurve | None
    bonds: tuple[int, ...]
    parameters: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frontier:
    """The Pareto-optimal ways to store one matrix, fewest parameters first; the last one is dense.

    Args:
        matrix: the matrix.
        options: index of the curve, and cap, of each way; (-1, 0) for dense.
        curves: the site shapes.
        parameters: parameters of each way, rising.
        losses: loss of each way, falling.
    """

    matrix: MatrixSpec
    options: NDArray[np.int64]
    curves: tuple[ErrorCurve, ...]
    parameters: NDArray[np.int64]
    losses: NDArray[np.float64]

    def best(self, price: float) -> int:
        """Return the way with the least loss + price x parameters; of equals the one with the fewest parameters."""
        return int(np.argmin(self.losses + price * self.parameters))

    def share(self, index: int) -> BudgetShare:
        """Return the way at an index."""
        curve_index, cap = (int(value) for value in self.options[index])
        curve = self.curves[curve_index] if curve_index >= 0 else None
        return BudgetShare(
            matrix=self.matrix,
            curve=curve,
            bonds=curve.sites.capped(cap) if curve is not None else (),
            parameters=int(self.parameters[index]),
            reason="" if curve is not None else PROTECTED if len(self.parameters) == 1 else WHOLE,
        )


_Form = list[tuple[_Frontier, int]]
"""A form of a layer: the frontier of every matrix, and the index chosen on it."""


def fewest_parameters(layers: Sequence[LayerSpec], curves: Mapping[str, Sequence[ErrorCurve]]) -> int:
    """Return the smallest number of parameters that all layers together can have, each in its smallest form.

    Args:
        layers: the layers.
        curves: the error curves of every matrix of every form, by name.
    """
    return sum(
        min(sum(_fewest(matrix, curves[matrix.name]) for matrix in form) for form in layer.forms) for layer in layers
    )


def _fewest(matrix: MatrixSpec, curves: Sequence[ErrorCurve]) -> int:
    at_bond_one = (curve.sites.parameters(curve.sites.capped(1)) for curve in curves)
    return min(matrix.dense_parameters, *at_bond_one) if curves else matrix.dense_parameters


def share_budget(
    layers: Sequence[LayerSpec],
    curves: Mapping[str, Sequence[ErrorCurve]],
    budget: int,
) -> tuple[BudgetShare, ...]:
    """Share a parameter budget among the layers.

    A signal passes one matrix after another, so the product of the energies kept by the matrices counts: the loss is
    the sum over all tensors of -log(1 - squared relative error). Errors of the first layer of a stack reach all later
    layers, which no weight error shows: it stays dense if it takes at most half of the budget. If losses of the model's
    outputs were measured, they are used instead, and no layer is kept dense in advance.

    A bisection finds one price per parameter at which all layers just fit the budget, when each layer chooses its form,
    site shapes and bonds on its own (a Lagrangian relaxation). The remainder is then spent step by step where it lowers
    the loss most per parameter, until no bond can be raised. docs/explanation/truncation.md compares this with other
    rules.

    Args:
        layers: the layers.
        curves: the error curves of every matrix of every form, by name.
        budget: parameters that all layers together may have; at least `fewest_parameters`.

    Returns:
        One share per matrix of the chosen forms, in the order of the layers.

    Source:
        Everett 1963, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources",
        Operations Research 11(3), doi:10.1287/opre.11.3.399.
    """
    measured = any(len(curve.losses) for candidates in curves.values() for curve in candidates)
    dense = frozenset() if measured else _protected(layers, budget, fewest_parameters(layers, curves))
    frontiers = [
        [
            [_frontier(matrix, () if position in dense else curves[matrix.name]) for matrix in form]
            for form in layer.forms
        ]
        for position, layer in enumerate(layers)
    ]
    forms = _at_lowest_price(frontiers, budget)
    _spend_remainder(forms, budget)
    return tuple(frontier.share(index) for form in forms for frontier, index in form)


def _protected(layers: Sequence[LayerSpec], budget: int, fewest: int) -> frozenset[int]:
    """Return the positions of the layers that stay dense because they are the first of a stack."""
    room = min(budget * PROTECTED_SHARE, budget - fewest)
    protected: set[int] = set()
    for positions in first_in_stacks(layers):
        cost = sum(layers[position].dense_parameters for position in positions)
        if cost <= room:
            room -= cost
            protected.update(positions)
    return frozenset(protected)


def first_in_stacks(layers: Sequence[LayerSpec]) -> tuple[tuple[int, ...], ...]:
    """Return the layers that are the first of a stack, by their names.

    The layers of a stack differ in one number: the levels of an LSTM (`weight_hh_l0`, `weight_hh_l1`), or modules such
    as `encoder.layer.0` and `encoder.layer.1`. Of nested stacks the outermost counts.

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
        for stack, depth in _stacks(layer):
            depths.setdefault(stack, set()).add(depth)
    first: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        outermost = next(((stack, depth) for stack, depth in _stacks(layer) if len(depths[stack]) > 1), None)
        if outermost is not None and outermost[1] == min(depths[outermost[0]]):
            first.setdefault(outermost[0], []).append(position)
    return tuple(tuple(positions) for positions in first.values())


def _stacks(layer: LayerSpec) -> list[tuple[str, int]]:
    """Return the stacks that a layer may belong to, and its number in each, outermost first."""
    parts = layer.name.split(".")
    stacks = [(".".join(parts[:place]), int(part)) for place, part in enumerate(parts) if part.isdecimal()]
    level = _LEVEL.search(layer.forms[0][0].name)
    return stacks if level is None else [*stacks, (f"{layer.name} levels", int(level[1]))]


def _at_lowest_price(frontiers: Sequence[Sequence[Sequence[_Frontier]]], budget: int) -> list[_Form]:
    """Return the forms and ways at the lowest price per parameter whose sum is within the budget."""
    free = [_best_form(forms, 0.0) for forms in frontiers]
    if sum(map(_size, free)) <= budget:
        return free
    low, high = LOWEST_PRICE, HIGHEST_PRICE
    small = [_best_form(forms, 10.0**high) for forms in frontiers]
    large = [_best_form(forms, 10.0**low) for forms in frontiers]
    total = sum(map(_size, small))
    open_rows = list(range(len(frontiers)))
    for _ in range(PRICE_STEPS):
        # A form that is the best at both ends of a range of prices is the best at every price in between.
        open_rows = [row for row in open_rows if not _is_same(small[row], large[row])]
        middle = (low + high) / 2
        forms = {row: _best_form(frontiers[row], 10.0**middle) for row in open_rows}
        change = sum(_size(form) - _size(small[row]) for row, form in forms.items())
        if total + change <= budget:
            high, total = middle, total + change
            end = small
        else:
            low, end = middle, large
        for row, form in forms.items():
            end[row] = form
    if total <= budget:
        return small
    return [min(([(frontier, 0) for frontier in form] for form in forms), key=_size) for forms in frontiers]


def _best_form(forms: Sequence[Sequence[_Frontier]], price: float) -> _Form:
    if len(forms) == 1:
        return _at_price(forms[0], price)
    return min((_at_price(form, price) for form in forms), key=lambda form: _cost(form, price))


def _at_price(form: Sequence[_Frontier], price: float) -> _Form:
    return [(frontier, frontier.best(price)) for frontier in form]


def _cost(form: _Form, price: float) -> float:
    return sum(float(frontier.losses[index] + price * frontier.parameters[index]) for frontier, index in form)


def _size(form: _Form) -> int:
    return sum(int(frontier.parameters[index]) for frontier, index in form)


def _is_same(form: _Form, other: _Form) -> bool:
    return len(form) == len(other) and all(
        left[0] is right[0] and left[1] == right[1] for left, right in zip(form, other, strict=True)
    )


def _spend_remainder(forms: list[_Form], budget: int) -> None:
    """Spend the remainder of the budget, the best gain per parameter first, until no step fits."""
    left = budget - sum(map(_size, forms))
    steps: list[tuple[float, int, int]] = []

    def add_step(row: int, column: int) -> None:
        frontier, index = forms[row][column]
        if index + 1 < len(frontier.parameters):
            cost = int(frontier.parameters[index + 1] - frontier.parameters[index])
            gain = float(frontier.losses[index] - frontier.losses[index + 1])
            heapq.heappush(steps, (-gain / cost, row, column))

    for row, form in enumerate(forms):
        for column in range(len(form)):
            add_step(row, column)
    while steps:
        _, row, column = heapq.heappop(steps)
        frontier, index = forms[row][column]
        cost = int(frontier.parameters[index + 1] - frontier.parameters[index])
        if cost <= left:
            left -= cost
            forms[row][column] = (frontier, index + 1)
            add_step(row, column)


def _frontier(matrix: MatrixSpec, curves: Sequence[ErrorCurve]) -> _Frontier:
    """Return the ways to store a matrix that no other way beats in both parameters and loss."""
    options = [np.array([[-1, 0]])]
    parameters = [np.array([matrix.dense_parameters])]
    losses = [np.array([0.0])]
    for position, curve in enumerate(curves):
        counts, squares = curve.table(len(matrix.members))
        caps = np.arange(1, len(counts) + 1)
        options.append(np.stack([np.full_like(caps, position), caps], axis=1))
        parameters.append(counts)
        from_errors = -np.log(np.maximum(1.0 - squares, LEAST_ENERGY)).sum(axis=0)
        losses.append(curve.losses if len(curve.losses) else from_errors)
    option, count, loss = np.concatenate(options), np.concatenate(parameters), np.concatenate(losses)
    order = np.lexsort((loss, count))
    lowest = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    useful = order[loss[order] < lowest]
    return _Frontier(
        matrix=matrix, options=option[useful], curves=tuple(curves), parameters=count[useful], losses=loss[useful]
    )

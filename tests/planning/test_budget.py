"""A budget over layers: never exceeded, nothing left to raise, and near the best there is."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpocompress.layers.specs import LayerSpec, MatrixSpec, Member
from mpocompress.mpo.sites import candidates, low_rank
from mpocompress.planning.budget import LEAST_ENERGY, BudgetShare, fewest_parameters, share_budget
from mpocompress.planning.curves import ErrorCurve, error_curves
from tests.draw import decaying, random_matrix

Ways = dict[int, float]
"""Parameters -> the least loss that they buy."""


@cache
def curves_of(rows: int, cols: int, first: int, kind: str, every_shape: bool) -> tuple[ErrorCurve, ...]:
    """Curves of the columns from `first` on of one random matrix."""
    part = random_matrix(rows, 16, seed=rows, kind=kind)[:, first : first + cols].contiguous()
    return error_curves(part, candidates(rows, cols, "auto") if every_shape else (low_rank(rows, cols),))


class Model:
    """A few layers with their curves; every second one has a joint form and one of two matrices."""

    def __init__(self, kinds: list[tuple[int, int, str]], every_shape: bool) -> None:
        self.layers: list[LayerSpec] = []
        self.curves: dict[str, tuple[ErrorCurve, ...]] = {}
        for number, (rows, cols, kind) in enumerate(kinds):
            specs = []
            for part, width, first in (("joint", cols, 0), ("ih", cols // 2, 0), ("hh", cols // 2, cols // 2)):
                name = f"{number}.{part}"
                self.curves[name] = curves_of(rows, width, first, kind, every_shape)
                member = Member(name=name, shape=(rows, width), dtype="float64")
                specs.append(MatrixSpec(name=name, members=(member,)))
            forms = ((specs[0],), (specs[1], specs[2])) if number % 2 == 0 else ((specs[0],),)
            self.layers.append(LayerSpec(name=str(number), kind="lstm", forms=forms))
        self.least = fewest_parameters(self.layers, self.curves)
        self.dense_parameters = sum(layer.dense_parameters for layer in self.layers)

    def __repr__(self) -> str:
        shapes = [layer.forms[0][0].shape for layer in self.layers]
        return f"Model of {shapes} with {[len(self.curves[f'{n}.joint']) for n in range(len(shapes))]} shapes"

    def share_budget(self, budget: int) -> tuple[BudgetShare, ...]:
        return share_budget(self.layers, self.curves, budget)

    def best_loss(self, budget: int) -> float:
        """The least loss of all choices of form, shape and cap, by trying them."""
        reached: Ways = {0: 0.0}
        for layer in self.layers:
            ways: Ways = {}
            for form in layer.forms:
                for way in itertools.product(*(self.ways(matrix).items() for matrix in form)):
                    buy(ways, sum(cost for cost, _ in way), sum(lost for _, lost in way))
            following: Ways = {}
            for (spent, lost), (cost, more) in itertools.product(reached.items(), ways.items()):
                if spent + cost <= budget:
                    buy(following, spent + cost, lost + more)
            reached = following
        return min(reached.values())

    def ways(self, matrix: MatrixSpec) -> Ways:
        ways: Ways = {matrix.dense_parameters: 0.0}
        for curve in self.curves[matrix.name]:
            for cap in range(1, curve.max_cap + 1):
                bonds = curve.sites.capped(cap)
                buy(ways, curve.sites.parameters(bonds), loss_of(curve, bonds))
        return ways


def buy(ways: Ways, cost: int, loss: float) -> None:
    """Note a way, if it loses less than what else the same parameters buy."""
    ways[cost] = min(ways.get(cost, math.inf), loss)


def loss_of(curve: ErrorCurve, bonds: tuple[int, ...]) -> float:
    return -math.log(max(1 - curve.error(bonds) ** 2, LEAST_ENERGY))


def loss_of_all(choices: tuple[BudgetShare, ...]) -> float:
    return sum(loss_of(choice.curve, choice.bonds) for choice in choices if choice.curve is not None)


kinds = st.tuples(
    st.sampled_from([8, 16]), st.sampled_from([8, 12]), st.sampled_from(["gaussian", "decaying", "rank one", "zeros"])
)
models = st.builds(Model, st.lists(kinds, min_size=1, max_size=3), st.booleans())
shares = st.floats(0, 1)


def budget_of(model: Model, share: float) -> int:
    return model.least + int(share * (model.dense_parameters - model.least))


@given(models, shares)
def test_the_budget_is_never_exceeded_and_no_bond_could_be_raised(model: Model, share: float) -> None:
    budget = budget_of(model, share)

    choices = model.share_budget(budget)

    spent = sum(choice.parameters for choice in choices)
    assert spent <= budget
    for choice in choices:
        if choice.curve is None:
            assert choice.parameters == choice.matrix.dense_parameters
            continue
        sites, cap = choice.curve.sites, max(choice.bonds)
        assert choice.bonds == sites.capped(cap)
        assert choice.parameters == sites.parameters(choice.bonds)
        raised = sites.capped(cap + 1)
        if cap < choice.curve.max_cap and loss_of(choice.curve, raised) < loss_of(choice.curve, choice.bonds) - 1e-12:
            assert spent - choice.parameters + sites.parameters(raised) > budget


@given(models, shares)
def test_every_layer_has_exactly_one_of_its_forms(model: Model, share: float) -> None:
    chosen = [choice.matrix for choice in model.share_budget(budget_of(model, share))]
    used = [form for layer in model.layers for form in layer.forms if all(matrix in chosen for matrix in form)]

    assert len(used) == len(model.layers)
    assert chosen == [matrix for form in used for matrix in form]


@settings(max_examples=30)
@given(models, shares)
def test_the_loss_is_near_the_least_there_is(model: Model, share: float) -> None:
    budget = budget_of(model, share)
    # A Lagrangian misses what lies off the convex hull: less than one step of one layer, and these layers are small.
    step = max(layer.dense_parameters for layer in model.layers) // 4

    loss = loss_of_all(model.share_budget(budget))

    assert loss <= max(1.3 * model.best_loss(budget), model.best_loss(max(model.least, budget - step))) + 1e-9


@given(models)
def test_the_least_budget_can_be_met_and_is_the_least(model: Model) -> None:
    cheapest = sum(min(sum(min(model.ways(m)) for m in form) for form in layer.forms) for layer in model.layers)

    assert sum(choice.parameters for choice in model.share_budget(model.least)) == model.least == cheapest


@given(models)
def test_the_whole_budget_loses_nothing(model: Model) -> None:
    assert loss_of_all(model.share_budget(model.dense_parameters)) <= 1e-12


@given(models, st.tuples(shares, shares))
def test_a_larger_budget_never_loses_much_more(model: Model, pair: tuple[float, float]) -> None:
    small, large = sorted(budget_of(model, share) for share in pair)

    assert loss_of_all(model.share_budget(large)) <= 1.3 * loss_of_all(model.share_budget(small)) + 1e-9


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.7])
def test_equal_layers_get_equal_bonds_to_within_one(share: float) -> None:
    model = Model([(16, 12, "gaussian"), (16, 12, "gaussian"), (16, 12, "gaussian")], every_shape=False)
    model.layers = [LayerSpec(name=layer.name, kind="linear", forms=layer.forms[:1]) for layer in model.layers]

    bonds = [choice.bonds[0] for choice in model.share_budget(int(share * model.dense_parameters)) if choice.curve]

    assert max(bonds) - min(bonds) <= 1


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_the_forms_of_a_layer_are_compared_by_one_measure(share: float) -> None:
    """A joint matrix counts for as many tensors as it holds: with unlike ranges they lose less apart."""
    ih, hh = decaying(64, 24, 1, 0.8), decaying(64, 24, 2, 0.8)
    members = [Member(name=name, shape=(64, 24), dtype="float64") for name in ("ih", "hh")]
    joint = (MatrixSpec(name="joint", members=tuple(members)),)
    apart = tuple(MatrixSpec(name=member.name, members=(member,)) for member in members)
    curves = {"ih": error_curves(ih, [low_rank(64, 24)]), "hh": error_curves(hh, [low_rank(64, 24)])}
    curves["joint"] = error_curves(torch.cat([ih, hh], dim=1), [low_rank(64, 48)], member_columns=[24, 24])

    def loss(*forms: tuple[MatrixSpec, ...]) -> float:
        total = 0.0
        for share_of_matrix in share_budget(
            [LayerSpec(name="l", kind="lstm", forms=forms)], curves, int(share * 64 * 48)
        ):
            if share_of_matrix.curve is not None:
                tails = share_of_matrix.curve.member_tails or share_of_matrix.curve.tails
                total += sum(-math.log(1 - float(tail[share_of_matrix.bonds[0]])) for tail in tails)
        return total

    # A bond step of slack: the joint matrix spends its share in larger steps.
    assert loss(joint, apart) <= 1.1 * min(loss(joint), loss(apart))


def test_without_layers_there_is_nothing_to_share() -> None:
    assert fewest_parameters([], {}) == 0
    assert share_budget([], {}, 0) == ()


def test_a_matrix_without_a_shape_stays_dense() -> None:
    matrix = MatrixSpec(name="m", members=(Member(name="m", shape=(4, 4), dtype="float32"),))
    layer = LayerSpec(name="m", kind="linear", forms=((matrix,),))

    assert fewest_parameters([layer], {"m": ()}) == 16
    (choice,) = share_budget([layer], {"m": ()}, 16)
    assert (choice.curve, choice.bonds, choice.parameters) == (None, (), 16)

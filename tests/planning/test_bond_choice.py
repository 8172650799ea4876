"""Plans: what a target makes of layers, without any core; and what cannot be planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpocompress.errors import TargetError
from mpocompress.layers.specs import LayerSpec, MatrixSpec, Member
from mpocompress.mpo.sites import candidates, low_rank
from mpocompress.mpo.svd import squared_norm
from mpocompress.mpo.tt_svd import factorise
from mpocompress.planning.bond_choice import BondChoice, choose_bonds
from mpocompress.planning.curves import MatrixCurves, error_curves
from mpocompress.planning.targets import Truncation
from tests.draw import decaying, random_matrix


def matrix_spec(name: str, *members: Tensor) -> MatrixSpec:
    leaves = ("ih", "hh") if len(members) > 1 else ("",)
    return MatrixSpec(
        name=name,
        members=tuple(
            Member(name=f"{name}.{leaf}" if leaf else name, shape=(member.shape[0], member.shape[1]), dtype="float64")
            for leaf, member in zip(leaves, members, strict=True)
        ),
    )


class Model:
    """Layers of real matrices: `lstm` with two forms, `fc` with one."""

    def __init__(self, ih: Tensor, hh: Tensor, fc: Tensor) -> None:
        self.weights = {
            "lstm.joint": torch.cat([ih, hh], dim=1),
            "lstm.weight_ih": ih,
            "lstm.weight_hh": hh,
            "fc.weight": fc,
        }
        joint = MatrixSpec(
            name="lstm.joint",
            members=matrix_spec("lstm.weight_ih", ih).members + matrix_spec("lstm.weight_hh", hh).members,
        )
        apart = (matrix_spec("lstm.weight_ih", ih), matrix_spec("lstm.weight_hh", hh))
        self.layers = [
            LayerSpec(name="lstm", kind="lstm", forms=((joint,), apart)),
            LayerSpec(name="fc", kind="linear", forms=((matrix_spec("fc.weight", fc),),)),
        ]
        self.curves = {
            name: MatrixCurves(
                curves=error_curves(weight, candidates(weight.shape[0], weight.shape[1], "auto")),
                squared_norm=squared_norm(weight),
            )
            for name, weight in self.weights.items()
        }

    def choices(self, other_parameters: int = 0, **target: Any) -> tuple[BondChoice, ...]:
        return choose_bonds(self.layers, self.curves, Truncation(**target).target, other_parameters)


def parameters(choices: tuple[BondChoice, ...]) -> int:
    return sum(choice.parameters for choice in choices)


ELIGIBLE = 48 * 24 + 20 * 24


MODEL = Model(random_matrix(48, 12, 0), random_matrix(48, 12, 1), random_matrix(20, 24, 2))
SMOOTH = Model(decaying(48, 12, 0), decaying(48, 12, 1), decaying(20, 24, 2))

targets = st.one_of(
    st.builds(lambda bond: {"max_bond": bond}, st.integers(1, 30)),
    st.builds(lambda energy: {"energy": energy}, st.floats(0.05, 1)),
    st.builds(lambda error: {"max_error": error}, st.floats(0, 0.99)),
    st.builds(lambda keep: {"keep": keep}, st.floats(0.2, 1)),
    st.builds(lambda limit: {"max_params": limit}, st.integers(400, 3000)),
)


@given(st.sampled_from([MODEL, SMOOTH]), targets)
def test_a_plan_holds_what_it_says_when_carried_out(model: Model, target: dict[str, Any]) -> None:
    choices = model.choices(**target)
    members = [member.name for entry in choices for member in entry.matrix.members]

    assert members == ["lstm.weight_ih", "lstm.weight_hh", "fc.weight"]
    assert sum(entry.matrix.dense_parameters for entry in choices) == ELIGIBLE
    for entry in choices:
        if entry.sites is None:
            assert entry.bonds == ()
            assert entry.parameters == entry.matrix.dense_parameters
            assert entry.relative_error == 0
            assert entry.reason
            continue
        assert entry.reason == ""
        assert entry.parameters < entry.matrix.dense_parameters
        assert entry.parameters == entry.sites.parameters(entry.bonds)
        result = factorise(model.weights[entry.matrix.name], entry.sites, bonds=entry.bonds)
        assert result.mpo.parameters == entry.parameters
        assert result.relative_error <= entry.relative_error + 1e-7  # the root of a float64 rounding of the norm
        if len(entry.bonds) == 1:
            assert result.relative_error == pytest.approx(entry.relative_error, abs=1e-7)


@given(st.sampled_from([MODEL, SMOOTH]), st.floats(0.2, 1))
def test_keep_counts_the_eligible_parameters(model: Model, keep: float) -> None:
    choices = model.choices(keep=keep)

    assert parameters(choices) <= keep * ELIGIBLE


@given(st.integers(400, 3000), st.integers(0, 300))
def test_the_other_parameters_count_under_max_params(limit: int, other: int) -> None:
    choices = MODEL.choices(max_params=limit + other, other_parameters=other)

    assert parameters(choices) + other <= limit + other
    assert choices == MODEL.choices(max_params=limit)


@given(st.sampled_from([MODEL, SMOOTH]), st.floats(0.01, 0.99))
def test_energy_is_an_error_in_other_words(model: Model, energy: float) -> None:
    by_energy = model.choices(energy=energy)
    by_error = model.choices(max_error=float((1 - energy) ** 0.5))

    assert [entry.bonds for entry in by_energy] == [entry.bonds for entry in by_error]
    assert all(entry.relative_error**2 <= (1 - energy) * (1 + 1e-9) for entry in by_energy)


def test_a_bond_cap_is_used_up_in_every_matrix() -> None:
    choices = MODEL.choices(max_bond=3)

    assert [entry.bonds for entry in choices] == [(3,)] * len(choices)


def test_a_matrix_that_would_not_shrink_stays_dense_and_says_so() -> None:
    choices = MODEL.choices(max_bond=20)

    assert choices[-1].reason == "at bond 20 no site shape is smaller than the dense 480 parameters"
    choices = MODEL.choices(max_error=0.0)
    assert {entry.reason.partition(" no site")[0] for entry in choices} == {"within a relative error of 0"}


def test_bonds_by_layer_leave_the_others_dense() -> None:
    choices = MODEL.choices(bond_by_layer={"fc": 2})

    assert [(entry.bonds, entry.reason) for entry in choices][-1] == ((2,), "")
    assert {entry.reason for entry in choices[:-1]} == {"no bond was requested for it"}


def test_bonds_by_layer_come_before_the_cap() -> None:
    choices = MODEL.choices(max_bond=5, bond_by_layer={"fc*": 2})

    assert [max(entry.bonds) for entry in choices] == [5] * (len(choices) - 1) + [2]


def test_a_bond_for_one_weight_of_an_lstm_leaves_the_other_alone() -> None:
    choices = MODEL.choices(bond_by_layer={"*weight_hh": 2})

    bonds = {member.name: entry.bonds for entry in choices for member in entry.matrix.members}
    assert bonds == {"lstm.weight_ih": (), "lstm.weight_hh": (2,), "fc.weight": ()}


@pytest.mark.parametrize("rank", [2, 12])
def test_two_bonds_in_an_lstm_are_two_bonds(rank: int) -> None:
    """Also where the weights share their range, so that joined they would lose less."""
    basis = random_matrix(48, rank, 3)
    model = Model(basis @ random_matrix(rank, 12, 4), basis @ random_matrix(rank, 12, 5), random_matrix(20, 24, 2))
    choices = model.choices(max_bond=5, bond_by_layer={"*weight_hh": 2})

    bonds = {member.name: entry.bonds for entry in choices for member in entry.matrix.members}
    assert bonds == {"lstm.weight_ih": (5,), "lstm.weight_hh": (2,), "fc.weight": (5,)}


def test_weights_that_share_their_range_are_joined_and_others_are_not() -> None:
    basis = random_matrix(48, 4, 3)
    shared = Model(basis @ random_matrix(4, 12, 4), basis @ random_matrix(4, 12, 5), random_matrix(20, 24, 2))
    unlike = Model(decaying(48, 12, 0, 0.3), 100 * random_matrix(48, 12, 1), random_matrix(20, 24, 2))

    targets: list[dict[str, Any]] = [{"max_bond": 4}, {"max_error": 1e-3}, {"keep": 0.4}]
    for target in targets:
        assert shared.choices(**target)[0].matrix.name == "lstm.joint", target
    for allowed in (0.1, 0.4):
        assert unlike.choices(max_error=allowed)[0].matrix.name == "lstm.weight_ih"


@pytest.mark.parametrize(("is_shared", "name"), [(False, "lstm.weight_ih"), (True, "lstm.joint")])
def test_a_projection_does_not_count_when_the_forms_are_compared(is_shared: bool, name: str) -> None:
    """It is a separate matrix in both forms, and here it has the largest error of all."""
    ih, hh = decaying(48, 12, 0), decaying(48, 12, 1)
    if is_shared:
        basis = random_matrix(48, 4, 3)
        ih, hh = basis @ random_matrix(4, 12, 4), basis @ random_matrix(4, 12, 5)
    hr = 1000 * random_matrix(20, 24, 2)
    weights = {"lstm.weight_ih": ih, "lstm.weight_hh": hh, "lstm.weight_hr": hr, "lstm.joint": torch.cat([ih, hh], 1)}
    joint = MatrixSpec(
        name="lstm.joint",
        members=matrix_spec("lstm.weight_ih", ih).members + matrix_spec("lstm.weight_hh", hh).members,
    )
    separate = tuple(matrix_spec(f"lstm.weight_{part}", weights[f"lstm.weight_{part}"]) for part in ("ih", "hh", "hr"))
    layer = LayerSpec(name="lstm", kind="lstm", forms=((joint, separate[-1]), separate))
    curves = {
        name: MatrixCurves(
            curves=error_curves(weight, candidates(weight.shape[0], weight.shape[1], "auto")),
            squared_norm=squared_norm(weight),
        )
        for name, weight in weights.items()
    }

    choices = choose_bonds([layer], curves, Truncation(max_bond=4).target, 0)

    assert choices[0].matrix.name == name
    assert choices[-1].matrix.name == "lstm.weight_hr"
    assert {choice.bonds for choice in choices} == {(4,)}


def test_an_lstm_that_only_shrinks_joined_is_joined() -> None:
    ih, hh = random_matrix(32, 8, 0), random_matrix(32, 8, 1)
    model = Model(ih, hh, random_matrix(20, 24, 2))
    shapes = {name: (low_rank(*weight.shape),) for name, weight in model.weights.items()}
    model.curves = {
        name: MatrixCurves(curves=error_curves(weight, shapes[name]), squared_norm=squared_norm(weight))
        for name, weight in model.weights.items()
    }

    assert [entry.bonds for entry in model.choices(max_bond=8)] == [(8,), (8,)]


@pytest.mark.parametrize(
    ("target", "other", "message"),
    [
        (
            {"keep": 0.01},
            0,
            r"keep 0.01: a budget of 16 parameters; the smallest bonds already need \d+\. Allow more",
        ),
        (
            {"max_params": 10},
            0,
            r"max_params 10: a budget of 10 parameters; the smallest bonds already need \d+\. Allow",
        ),
        (
            {"max_params": 1000},
            5000,
            r"max_params 1,000: a budget of 1,000 .* need 5,\d+, 5,000 of them in layers that are not compressed",
        ),
    ],
)
def test_a_budget_below_the_least_is_refused(target: dict[str, Any], other: int, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        MODEL.choices(other_parameters=other, **target)


def test_a_matrix_without_a_shape_stays_dense_with_its_problem() -> None:
    fc = MODEL.layers[1]
    curves = {"fc.weight": MatrixCurves(curves=(), squared_norm=1.0, problem="too few divisors")}

    for truncation in (Truncation(max_bond=2), Truncation(max_error=0.5), Truncation(keep=1)):
        (entry,) = choose_bonds([fc], curves, truncation.target, 0)
        assert (entry.sites, entry.reason, entry.parameters) == (None, "too few divisors", 480)


def test_no_layers_are_an_empty_plan() -> None:
    for truncation in (Truncation(max_bond=2), Truncation(max_error=0.5), Truncation(keep=0.5)):
        assert choose_bonds([], {}, truncation.target, 0) == ()

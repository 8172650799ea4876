"""The truncation rule against brute force, and every malformed target refused in words."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpocompress.errors import TargetError
from mpocompress.mpo.truncation import smallest_bond, tail_weights
from mpocompress.planning.targets import TARGETS, TargetValues, Truncation

spectra = st.lists(st.floats(0, 1e6), min_size=1, max_size=12).map(lambda values: sorted(values, reverse=True))


@given(spectra, st.floats(0, 1e6))
def test_a_tail_weight_is_the_sum_of_the_squares_dropped(values: list[float], residual: float) -> None:
    tails = tail_weights(np.array(values), residual)

    assert len(tails) == len(values) + 1
    for bond, tail in enumerate(tails):
        # float64 sums of at most 13 terms
        assert tail == pytest.approx(math.fsum([*(value**2 for value in values[bond:]), residual]), rel=1e-14)


def test_small_tails_are_not_lost_beside_large_heads() -> None:
    assert tail_weights(np.array([1e8, 1e-4]))[1] == 1e-4**2


def test_a_negative_residual_is_rounding_and_counts_as_none() -> None:
    assert tail_weights(np.array([1.0]), -1e-9).tolist() == [1.0, 0.0]


@given(spectra, st.floats(0, 1e12), st.none() | st.integers(1, 15))
def test_the_bond_is_the_smallest_within_the_budget(values: list[float], budget: float, cap: int | None) -> None:
    tails = tail_weights(np.array(values))
    within = [bond for bond in range(1, len(tails)) if tails[bond] <= budget]

    bond = smallest_bond(tails, max_bond=cap, discarded_budget=budget)

    assert bond == min(within[0], len(values) if cap is None else cap)


@given(spectra, st.integers(1, 15))
def test_a_cap_alone_is_used_up(values: list[float], cap: int) -> None:
    assert smallest_bond(tail_weights(np.array(values)), max_bond=cap) == min(cap, len(values))


def test_a_budget_below_what_is_left_over_takes_all_there_is() -> None:
    assert smallest_bond(tail_weights(np.array([2.0, 1.0]), residual=0.5), discarded_budget=0.1) == 2


def test_zeros_keep_one_bond() -> None:
    assert smallest_bond(tail_weights(np.zeros(3)), discarded_budget=0.0) == 1


@pytest.mark.parametrize(
    ("given_", "kind", "asked", "budget"),
    [
        ({"max_bond": 16}, "bond", 16, None),
        ({"bond_by_layer": {"a*": 3}}, "bond", None, None),
        ({"max_bond": 16, "bond_by_layer": {"a*": 3}}, "bond", 16, None),
        ({"energy": 0.75}, "energy", 0.75, 0.5),
        ({"energy": 1}, "energy", 1, 0.0),
        ({"max_error": 0.1}, "max_error", 0.1, 0.1),
        ({"max_error": 0}, "max_error", 0, 0),
        ({"keep": 1}, "keep", 1, None),
        ({"max_params": 1}, "max_params", 1, None),
    ],
)
def test_a_target_says_its_kind_and_value(
    given_: dict[str, Any], kind: str, asked: float | None, budget: float | None
) -> None:
    truncation = Truncation(**given_)

    target = truncation.target
    assert (target.kind, target.value, target.error_limit) == (kind, asked, budget)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (
            {},
            r"truncation: no target; a compression has exactly one\. Pass one of: max_bond, energy, max_error, keep, ",
        ),
        ({"max_bond": 4, "keep": 0.5}, r"truncation: 2 targets \(max_bond, keep\); a compression has exactly one"),
        (
            {"keep": 0.5, "bond_by_layer": {"a": 1}},
            r"bond caps of single layers together with keep; keep chooses every bond\. Pass bond_by_layer with ",
        ),
        ({"max_bond": 0}, r"^max_bond: got 0; it must be an integer of 1 or more, below 1e15\. Pass such a value\.$"),
        ({"max_bond": -3}, "max_bond: got -3"),
        ({"max_bond": 2.5}, "max_bond: got 2.5"),
        ({"max_bond": math.inf}, "max_bond: got inf; it must be an integer"),
        ({"max_bond": math.nan}, "max_bond: got nan"),
        ({"max_params": 0}, "max_params: got 0; it must be an integer of 1 or more"),
        ({"max_params": math.inf}, "max_params: got inf"),
        ({"bond_by_layer": {"lstm*": 0}}, r"lstm\*: got 0; it must be an integer of 1 or more"),
        ({"energy": 0}, "energy: got 0; it must be a number above 0 and at most 1"),
        ({"energy": 1.1}, "energy: got 1.1"),
        ({"energy": math.nan}, "energy: got nan"),
        ({"keep": 0.0}, "keep: got 0.0; it must be a number above 0 and at most 1"),
        ({"keep": 2}, "keep: got 2"),
        ({"max_error": 1}, "max_error: got 1; it must be a number from 0 to below 1"),
        ({"max_error": -0.1}, "max_error: got -0.1"),
        ({"max_error": math.nan}, "max_error: got nan"),
    ],
)
def test_a_target_that_nothing_can_meet_is_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Truncation(**given_)


def test_the_last_pattern_that_matches_gives_the_bond() -> None:
    truncation = Truncation(max_bond=16, bond_by_layer={"lstm*": 8, "*hh*": 4})

    assert truncation.target.bond_cap("lstm", "lstm.weight_ih_l0") == 8
    assert truncation.target.bond_cap("lstm", "lstm.weight_hh_l0") == 4
    assert truncation.target.bond_cap("fc", "fc.weight") == 16


def test_without_a_cap_only_the_named_layers_get_a_bond() -> None:
    truncation = Truncation(bond_by_layer={"lstm": 8})

    assert truncation.target.bond_cap("lstm", "lstm.weight_ih_l0") == 8
    assert truncation.target.bond_cap("fc", "fc.weight") is None


def test_a_pattern_that_is_a_name_means_that_name() -> None:
    truncation = Truncation(max_bond=16, bond_by_layer={"layers[0].weight": 8})

    assert truncation.target.bond_cap("layers[0].weight") == 8


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("bond", "16", 16),
        ("energy", "0.9", 0.9),
        ("energy", "1", 1.0),
        ("max_error", "0", 0.0),
        ("max_error", "1e-2", 0.01),
        ("keep", "1/8", 0.125),
        ("max_params", "7000000000", 7_000_000_000),
    ],
)
def test_a_value_is_read_from_text(kind: str, text: str, value: float) -> None:
    parsed = TARGETS[kind].parse(text)

    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "texts", "allowed"),
    [
        ("bond", ("0", "-1", "2.5", "1/2", "", "x", "1" * 16, "1" * 5000), "an integer of 1 or more, below 1e15"),
        ("energy", ("0", "1.01", "nan", "1/0", "a/b", ""), "a number above 0 and at most 1"),
        ("max_error", ("1", "-0.1", "inf", "x"), "a number from 0 to below 1"),
        ("keep", ("0", "3/2", "1/", "/2"), "a number above 0 and at most 1"),
        ("max_params", ("0", "1e6", " "), "an integer of 1 or more, below 1e15"),
    ],
)
def test_text_that_is_no_value_is_refused(kind: str, texts: tuple[str, ...], allowed: str) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=f"^{allowed}$"):
            TARGETS[kind].parse(text)


@pytest.mark.parametrize(
    ("kind", "value", "texts"),
    [
        ("bond", 1024, ("1,024", "1,024", "largest bond 1024")),
        ("energy", 0.95, ("0.95", "0.95", "0.95")),
        ("max_error", 0.123456789, ("0.123457", "0.123457", "0.12346")),
        ("keep", 0.125, ("0.125", "1/8", "0.125")),
        ("keep", 0.3, ("0.3", "0.3", "0.3")),
        ("max_params", 123456, ("123,456", "123,456", "123,456")),
    ],
)
def test_a_value_is_shown_in_the_form_of_its_kind(kind: str, value: float, texts: tuple[str, str, str]) -> None:
    target = TARGETS[kind]

    assert (target.show(value), target.show_short(value), target.show_achieved(value)) == texts


def test_every_target_is_an_argument_of_truncation_for_type_checkers_and_help() -> None:
    names = [target.name for target in TARGETS.values()]

    assert list(TargetValues.__annotations__) == names
    assert list(inspect.signature(Truncation).parameters) == [*names, "bond_by_layer"]


def test_a_truncation_is_a_value() -> None:
    truncation = Truncation(max_bond=16, bond_by_layer={"fc": 4})

    assert repr(truncation) == "Truncation(max_bond=16, bond_by_layer={'fc': 4})"
    assert repr(Truncation(bond_by_layer={"fc": 4})) == "Truncation(bond_by_layer={'fc': 4})"
    assert truncation == copy.deepcopy(truncation) == pickle.loads(pickle.dumps(truncation))
    assert truncation != Truncation(max_bond=16)

"""The truncation rule against brute force, and every malformed target refused in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpocompress.errors import TargetError
from mpocompress.mpo.truncation import choose_bond, tail_weights
from mpocompress.planning.target import Truncation

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

    bond = choose_bond(tails, max_bond=cap, discarded_budget=budget)

    assert bond == min(within[0], len(values) if cap is None else cap)


@given(spectra, st.integers(1, 15))
def test_a_cap_alone_is_used_up(values: list[float], cap: int) -> None:
    assert choose_bond(tail_weights(np.array(values)), max_bond=cap) == min(cap, len(values))


def test_a_budget_below_what_is_left_over_takes_all_there_is() -> None:
    assert choose_bond(tail_weights(np.array([2.0, 1.0]), residual=0.5), discarded_budget=0.1) == 2


def test_zeros_keep_one_bond() -> None:
    assert choose_bond(tail_weights(np.zeros(3)), discarded_budget=0.0) == 1


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

    assert (truncation.kind, truncation.asked, truncation.error_budget) == (kind, asked, budget)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (
            {},
            r"truncation target: none given; a compression has exactly one\. Give one of: bond, energy, max_error",
        ),
        ({"max_bond": 4, "keep": 0.5}, r"2 given \(bond, keep\); a compression has exactly one"),
        (
            {"keep": 0.5, "bond_by_layer": {"a": 1}},
            "bonds for single layers together with keep; keep chooses every bond itself",
        ),
        ({"max_bond": 0}, "bond: got 0; it must be an integer of 1 or more"),
        ({"max_bond": -3}, "bond: got -3"),
        ({"max_bond": 2.5}, "bond: got 2.5"),
        ({"max_bond": math.inf}, "bond: got inf; it must be an integer"),
        ({"max_bond": math.nan}, "bond: got nan"),
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

    assert truncation.bond_cap("lstm", "lstm.weight_ih_l0") == 8
    assert truncation.bond_cap("lstm", "lstm.weight_hh_l0") == 4
    assert truncation.bond_cap("fc", "fc.weight") == 16


def test_without_a_cap_only_the_named_layers_get_a_bond() -> None:
    truncation = Truncation(bond_by_layer={"lstm": 8})

    assert truncation.bond_cap("lstm", "lstm.weight_ih_l0") == 8
    assert truncation.bond_cap("fc", "fc.weight") is None


def test_a_pattern_that_is_a_name_means_that_name() -> None:
    truncation = Truncation(max_bond=16, bond_by_layer={"layers[0].weight": 8})

    assert truncation.bond_cap("layers[0].weight") == 8

"""How long a run is, and how its learning rate rises and falls."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpocompress.finetuning.learning_rate import schedule_factor, warm_up_steps
from mpocompress.finetuning.schedule import Length


@pytest.mark.parametrize(
    ("steps", "seconds", "step", "elapsed_s", "share", "expected"),
    [
        (100, None, 0, 5.0, 0.0, 100),
        (100, None, 25, 5.0, 0.25, 100),
        (100, None, 100, 5.0, 1.0, 100),
        (None, 60.0, 10, 15.0, 0.25, 40),
        (None, 60.0, 10, 90.0, 1.0, 10),
        (100, 60.0, 10, 15.0, 0.25, 40),
        (100, 60.0, 50, 15.0, 0.5, 100),
    ],
)
def test_the_nearer_limit_counts(
    steps: int | None, seconds: float | None, step: int, elapsed_s: float, share: float, expected: int
) -> None:
    length = Length(steps=steps, seconds=seconds)

    assert length.share(step, elapsed_s) == pytest.approx(share)
    assert length.expected_steps(step, elapsed_s) == expected


@pytest.mark.parametrize(
    ("steps", "minutes", "expected"),
    [(None, None, (1000, None)), (3, None, (3, None)), (None, 0.5, (None, 30.0)), (3, 2.0, (3, 120.0))],
)
def test_a_run_has_a_thousand_steps_unless_a_limit_is_given(
    steps: int | None, minutes: float | None, expected: tuple[int | None, float | None]
) -> None:
    length = Length.of(steps, minutes)

    assert (length.steps, length.seconds) == expected


@pytest.mark.parametrize(("expected", "wanted"), [(1, 1), (10, 2), (60, 12), (400, 80), (100_000, 100)])
def test_the_learning_rate_rises_over_a_fifth_of_the_run_and_over_a_hundred_steps_at_most(
    expected: int, wanted: int
) -> None:
    assert warm_up_steps(expected) == wanted


@given(st.integers(1, 2000), st.integers(1, 20))
def test_the_learning_rate_rises_straight_and_falls_as_a_half_wave(steps: int, warm_up: int) -> None:
    for step in {0, steps // 3, steps // 2, steps - 1}:
        wanted = 0.01 + 0.99 * math.cos(math.pi * step / steps / 2) ** 2  # the half-angle form of (1 + cos) / 2
        wanted *= min(1.0, (step + 1) / warm_up)
        found = schedule_factor(step / steps, step, warm_up)
        assert found == pytest.approx(wanted, rel=1e-9)
        assert 0.0 < found <= 1.0

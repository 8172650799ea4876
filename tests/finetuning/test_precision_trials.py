"""The choice of the training precision: the clearly fastest one, without a change of the model."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from mpocompress.finetuning.precision import MatmulDtypes, autocast
from mpocompress.finetuning.precision_trials import fastest

CPU = torch.device("cpu")


def clock(monkeypatch: pytest.MonkeyPatch, **durations: float) -> dict[str, Callable[[], object]]:
    """Functions of a given duration, by a clock of the test."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def lasting(seconds: float) -> Callable[[], object]:
        def run() -> None:
            now[0] += seconds

        return run

    return {name: lasting(seconds) for name, seconds in durations.items()}


@pytest.mark.parametrize(
    ("durations", "wanted"),
    [
        ({"first": 1.0, "second": 0.5}, "second"),
        ({"first": 1.0, "second": 0.5, "third": 0.4}, "third"),
        ({"first": 1.0, "second": 0.9}, "first"),
        ({"first": 0.5, "second": 1.0}, "first"),
        ({"first": 0.003, "second": 0.0}, "first"),
        ({"first": 1.0}, "first"),
    ],
)
def test_another_function_is_chosen_if_it_is_clearly_faster(
    durations: dict[str, float], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fastest(clock(monkeypatch, **durations), CPU) == wanted


def test_the_first_call_of_a_function_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles and allocates."""
    runs = clock(monkeypatch, first=1.0, start=100.0, second=0.5)
    start, second, calls = runs.pop("start"), runs["second"], [0]

    def slow_at_first() -> None:
        calls[0] += 1
        (start if calls[0] == 1 else second)()

    assert fastest({**runs, "second": slow_at_first}, CPU) == "second"


@pytest.mark.parametrize(
    ("model", "teacher", "text"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "bfloat16, teacher in float32"),
        ("float32", "bfloat16", "float32, teacher in bfloat16"),
    ],
)
def test_dtypes_are_written_as_text(model: str, teacher: str, text: str) -> None:
    assert str(MatmulDtypes(model=model, teacher=teacher)) == text


def test_products_are_computed_in_the_dtype() -> None:
    matrix = torch.eye(3)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(CPU, name):
            assert (matrix @ matrix).dtype == dtype


def test_a_function_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fail() -> None:
        tried.append("second")
        raise RuntimeError("no such product")

    runs = clock(monkeypatch, first=0.006, third=0.001)

    assert fastest({"first": runs["first"], "second": fail, "third": runs["third"]}, CPU) == "third"
    assert tried == ["second"]

"""Which way a model trains fastest: found without surprises, and nothing left changed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mpocompress.finetuning.autotune import fastest
from mpocompress.finetuning.precision import Way, from_cores, from_words
from tests.finetuning.runs import pair

CPU = torch.device("cpu")


def clock(monkeypatch: pytest.MonkeyPatch, **lasts: float) -> dict[str, Callable[[], object]]:
    """Functions that take as long as is said, by a clock of the test's own."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def one(seconds: float) -> Callable[[], object]:
        def run() -> None:
            now[0] += seconds

        return run

    return {name: one(seconds) for name, seconds in lasts.items()}


@pytest.mark.parametrize(
    ("lasts", "wanted"),
    [
        ({"first": 1.0, "second": 0.5}, "second"),
        ({"first": 1.0, "second": 0.5, "third": 0.4}, "third"),
        ({"first": 1.0, "second": 0.9}, "first"),
        ({"first": 0.5, "second": 1.0}, "first"),
        ({"first": 0.003, "second": 0.0}, "first"),
        ({"first": 1.0}, "first"),
    ],
)
def test_another_way_is_taken_where_it_is_clearly_faster(
    lasts: dict[str, float], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fastest(clock(monkeypatch, **lasts), CPU) == wanted


def test_what_is_slow_at_first_is_not_taken_for_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of a way compiles and allocates."""
    runs = clock(monkeypatch, first=1.0, start=100.0, second=0.5)
    start, second, calls = runs.pop("start"), runs["second"], [0]

    def slow_at_first() -> None:
        calls[0] += 1
        (start if calls[0] == 1 else second)()

    assert fastest({**runs, "second": slow_at_first}, CPU) == "second"


def test_layers_run_from_their_cores_in_a_block_and_as_before_after_it() -> None:
    student, _ = pair()
    student[0].execution = "materialised"

    def leave() -> None:
        with from_cores(student):
            assert [student[place].execution for place in (0, 2)] == ["factorised"] * 2
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert [student[place].execution for place in (0, 2)] == ["materialised", "auto"]
    with from_cores(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("teacher_low", [False, True])
def test_a_way_is_read_back_from_its_words(low: bool, teacher_low: bool) -> None:
    way = Way(low=low, teacher_low=teacher_low)

    assert from_words((str(low), str(teacher_low))) == way
    words = way.words()
    assert words.startswith("bfloat16" if low else "float32")
    assert words.endswith("bfloat16" if teacher_low else "float32")
    assert (", teacher in " in words) == (low != teacher_low)


def test_what_does_not_run_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fail() -> None:
        tried.append("second")
        raise RuntimeError("no such product")

    runs = clock(monkeypatch, first=0.006, third=0.001)

    assert fastest({"first": runs["first"], "second": fail, "third": runs["third"]}, CPU) == "third"
    assert tried == ["second"]

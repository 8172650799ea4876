"""Samples in turns, by a clock that only moves when a call says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mpocompress.nn.timing import FEWEST, Call, best_times, interleaved


class Clock:
    """Time that calls spend, and a record of who spent it."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, seconds: float) -> Call:
        def run() -> None:
            self.now += seconds
            self.log += name

        return Call(run=run)


def test_a_sample_has_as_many_calls_as_last_long_enough() -> None:
    clock = Clock()

    short, long = interleaved(
        [clock.task("s", 0.25), clock.task("l", 4)], repeats=2, sample_s=2, budget_s=1e9, clock=clock
    )

    assert (short.calls, long.calls) == (8, 1)
    assert (short.times_s, long.times_s) == ((0.25, 0.25), (4, 4))


def test_a_call_that_lasts_long_is_made_once_before_its_samples() -> None:
    clock = Clock()

    (samples,) = interleaved([clock.task("l", 101)], repeats=2, sample_s=1, budget_s=1e9, clock=clock)

    assert (clock.log, samples.calls) == ("lll", 1)


def test_every_round_takes_one_sample_of_each_and_starts_with_another() -> None:
    clock = Clock()
    tasks = [clock.task(name, 1) for name in "abc"]

    interleaved(tasks, repeats=3, sample_s=1, budget_s=1e9, clock=clock)

    warmed = "aabbcc"
    assert clock.log == f"{warmed}aabbccbbccaaccaabb"


@pytest.mark.slow
def test_slow_calls_make_rounds_fewer_for_all_alike() -> None:
    for repeats, budget_s, rounds in ((9, 50, FEWEST), (9, 88, 4), (2, 1, 2), (9, 1e9, 9)):
        clock = Clock()
        found = interleaved(
            [clock.task("s", 1), clock.task("l", 10)], repeats=repeats, sample_s=1, budget_s=budget_s, clock=clock
        )
        assert [len(samples.times_s) for samples in found] == [rounds, rounds]


def test_a_switch_is_set_around_a_sample_and_not_timed() -> None:
    clock, entered = Clock(), list[bool]()

    @contextmanager
    def switch() -> Iterator[None]:
        clock.now += 100
        entered.append(True)
        yield
        clock.now += 100

    task = Call(run=clock.task("a", 1).run, context=switch)
    (samples,) = interleaved([task], repeats=2, sample_s=1, budget_s=1e9, clock=clock)

    assert list(samples.times_s) == [1.0, 1.0]
    assert len(entered) == 3


def test_what_a_call_raises_is_not_hidden() -> None:
    def fail() -> object:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        interleaved([Call(run=fail)], repeats=1)


def test_the_best_time_is_that_of_the_shortest_call_after_the_first() -> None:
    clock, lasts = Clock(), iter([1.0, 9.0, 3.0, 5.0])

    def run() -> None:
        clock.now += next(lasts)

    assert best_times({"a": run}, rounds=3, clock=clock) == {"a": 3.0}


def test_functions_have_their_turns_in_every_round_and_a_turn_lasts_long_enough() -> None:
    clock = Clock()
    runs = {name: clock.task(name, seconds).run for name, seconds in (("s", 1), ("l", 4))}

    assert best_times(runs, rounds=2, least_s=3, clock=clock) == {"s": 1, "l": 4}
    assert clock.log == "sl" + "sssl" + "lsss"

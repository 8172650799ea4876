"""Timing of several functions against each other, in turns: a change of the machine's speed affects all of them.

`interleaved` measures for a report, with samples of many calls; `best_times` measures to choose, with single calls.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=str)

SAMPLE_S = 0.002
"""Shortest duration of a sample: it has as many calls as that takes."""
BUDGET_S = 5.0
"""Time for all samples of all calls, unless there are the fewest of each."""
SLOW = 100
"""A first call that lasts this many samples is slow: its samples have one call, without a call to warm up."""
FEWEST = 3
"""Samples of every call, unless fewer are requested."""

Clock = Callable[[], float]
"""Returns a time in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function to time.

    Args:
        run: the function.
        context: makes a context that is entered around it, such as a switch of the library; entering is not timed.
    """

    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The measured times of one call.

    Args:
        times_s: seconds of one call in every sample, in the order in which they were measured.
        calls: calls in a sample; its time is divided by them.
    """

    times_s: tuple[float, ...]
    calls: int


def interleaved(
    calls: Sequence[Call],
    *,
    repeats: int,
    sample_s: float = SAMPLE_S,
    budget_s: float = BUDGET_S,
    clock: Clock = time.perf_counter,
) -> tuple[Samples, ...]:
    """Time calls in rounds of one sample each.

    Every call is warmed up, and is made once more before each of its samples, which brings back what the call before it
    evicted from the caches; slow calls (see `SLOW`) are not. Every round starts with another call. The number of rounds
    depends on the slowest call and is the same for all.

    Args:
        calls: the calls.
        repeats: the largest number of rounds, 1 or more.
        sample_s: shortest duration of a sample, in seconds.
        budget_s: seconds for all rounds together, unless there are fewer than `FEWEST`.
        clock: the clock; for an asynchronous device see `clock_of`.

    Returns:
        The samples of every call.

    Raises:
        Exception: whatever a call raises.

    Example:
        >>> (samples,) = interleaved([Call(run=lambda: sum(range(100)))], repeats=3)
        >>> len(samples.times_s)
        3
    """
    numbers, slow = [], []
    with _no_collection():
        for call in calls:
            with call.context():
                first = _sample_s(call, 1, clock)
                slow.append(first > SLOW * sample_s)
                numbers.append(1 if slow[-1] else _number(call, sample_s, clock))

        def sample(place: int) -> float:
            call, number = calls[place], numbers[place]
            with call.context():
                if not slow[place]:
                    call.run()
                return _sample_s(call, number, clock) / number

        times = _in_rounds(len(calls), sample, rounds=repeats, budget_s=budget_s, clock=clock)
    return tuple(Samples(times_s=tuple(own), calls=number) for own, number in zip(times, numbers, strict=True))


def best_times(
    runs: Mapping[Name, Callable[[], object]], *, rounds: int, least_s: float = 0.0, clock: Clock = time.perf_counter
) -> dict[Name, float]:
    """Return the shortest time of a single call of every function, after one call that is not timed.

    Args:
        runs: name -> function.
        rounds: how many times each function has its turn.
        least_s: shortest duration of a turn, in seconds; it has at least one call.
        clock: the clock; for an asynchronous device see `clock_of`.

    Returns:
        Name -> seconds.

    Example:
        >>> list(best_times({"sum": lambda: sum(range(100))}, rounds=2))
        ['sum']
    """
    functions = list(runs.values())
    for run in functions:
        run()

    def sample(place: int) -> float:
        run, best, spent = functions[place], math.inf, 0.0
        while True:
            start = clock()
            run()
            seconds = clock() - start
            best, spent = min(best, seconds), spent + seconds
            if spent >= least_s:
                return best

    times = _in_rounds(len(functions), sample, rounds=rounds, budget_s=math.inf, clock=clock)
    return {name: min(own) for name, own in zip(runs, times, strict=True)}


def clock_of(device: str) -> Clock:
    """Return the clock for calls that run on a device.

    Args:
        device: its type; on `cuda` the clock waits until the device has finished.
    """

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized if device == "cuda" else time.perf_counter


def _in_rounds(
    count: int, sample: Callable[[int], float], *, rounds: int, budget_s: float, clock: Clock
) -> list[list[float]]:
    """Take samples in rounds that start with another place each; the budget stops all but the fewest."""
    times: list[list[float]] = [[] for _ in range(count)]
    for done in range(rounds):
        if budget_s <= 0 and done >= FEWEST:
            break
        start = clock()
        for place in range(count):
            place = (place + done) % count
            times[place].append(sample(place))
        budget_s -= clock() - start
    return times


def _number(call: Call, sample_s: float, clock: Clock) -> int:
    """Return the number of calls that a sample takes; a power of two."""
    number = 1
    while _sample_s(call, number, clock) < sample_s:
        number *= 2
    return number


def _sample_s(call: Call, number: int, clock: Clock) -> float:
    start = clock()
    for _ in range(number):
        call.run()
    return clock() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running during a sample."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

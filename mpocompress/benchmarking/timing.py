"""Several calls timed against each other: interleaved samples, each of as many calls as a clock can tell apart."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

SAMPLE_S = 0.002
"""Seconds that a sample lasts at least: as many calls as that takes."""
BUDGET_S = 5.0
"""Seconds in which all samples of all calls are made, as long as there are the fewest of each."""
SLOW = 100
"""A first call that lasts this many samples tells all there is to know: one call is a sample."""
FEWEST = 3
"""Samples of every call, unless fewer are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Something to time.

    Args:
        run: does it once.
        under: makes what has to be entered around it, such as a switch of the library; entering is not timed.
    """

    run: Callable[[], object]
    under: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """How long one call took.

    Args:
        times_s: seconds of one call, from every sample in the order in which they were taken.
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
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Samples, ...]:
    """Time calls in rounds, one sample of each in a round, so that a machine that slows down does so for all of them.

    Every call is warmed up, and made once more before each sample, which brings back what the one before it took from
    the caches; but for slow ones, which take longer than that makes up. No round begins with the same call as the one
    before it. Slow calls make rounds fewer, for all alike.

    Args:
        calls: what to time.
        repeats: the most rounds, 1 or more.
        sample_s: seconds that a sample lasts at least.
        budget_s: seconds that all rounds together may take, unless they are `FEWEST`.
        clock: what is measured, in seconds; of a device that works by itself, after it has finished.

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
            with call.under():
                first = _sample_s(call, 1, clock)
                slow.append(first > SLOW * sample_s)
                numbers.append(1 if slow[-1] else _number(call, sample_s, clock))
        times: list[list[float]] = [[] for _ in calls]
        rounds, least = repeats, min(repeats, FEWEST)
        done = 0
        while done < rounds:
            start = clock()
            for place in range(len(calls)):
                place = (place + done) % len(calls)
                with calls[place].under():
                    if not slow[place]:
                        calls[place].run()
                    times[place].append(_sample_s(calls[place], numbers[place], clock) / numbers[place])
            done += 1
            budget_s -= clock() - start
            if budget_s <= 0:
                rounds = max(done, least)
    return tuple(Samples(times_s=tuple(own), calls=number) for own, number in zip(times, numbers, strict=True))


def _number(call: Call, sample_s: float, clock: Callable[[], float]) -> int:
    """Calls that take as long as a sample lasts; a power of two."""
    number = 1
    while _sample_s(call, number, clock) < sample_s:
        number *= 2
    return number


def _sample_s(call: Call, number: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(number):
        call.run()
    return clock() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector of Python from running in the middle of a sample."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

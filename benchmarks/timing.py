"""Timing of several tasks in one process: interleaved repeats, medians, ratios to a baseline of the same run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Clock = Literal["cpu", "wall"]
"""Processor time of this process, summed over its threads, or wall time."""

CLOCKS: Mapping[Clock, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}

MILLISECONDS_BELOW_S = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing(Generic[T]):
    """The repeats of one task in order.

    Args:
        times_s: Seconds of every run; at least one.
        result: Result of the last run.
    """

    times_s: tuple[float, ...]
    result: T

    @property
    def median_s(self) -> float:
        """Median of the runs, in seconds."""
        return statistics.median(self.times_s)

    @property
    def spread_s(self) -> tuple[float, float]:
        """(fastest, slowest) run, in seconds."""
        return min(self.times_s), max(self.times_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A task that raised an error.

    Args:
        reason: Type and message of the error, on one line.
    """

    reason: str


def interleave(
    tasks: Mapping[str, Callable[[], T]],
    *,
    repeats: int,
    slow_repeats: int,
    slow_s: float,
    clock: Clock = "cpu",
    on_run: Callable[[str, float], None] = lambda _name, _seconds: None,
) -> dict[str, Timing[T] | Failure]:
    """Run tasks in rounds, so that changes in the speed of the machine affect all of them.

    A task that took longer than `slow_s` is slow: it runs `slow_repeats` times in total, and the others run again after
    each of its runs, so that all are measured over the same period. A fast task runs twice each time and the second run
    counts; a slow one is its own warm-up. Name the fast tasks first. A task that raises an error is not run again.

    Args:
        tasks: Name -> task.
        repeats: Minimum number of runs of a fast task, 1 or more.
        slow_repeats: Number of runs of a slow task, 1 or more.
        slow_s: Seconds above which a task is slow.
        clock: Processor time or wall time.
        on_run: Called with the name and the seconds of every run.

    Returns:
        The timing or failure of every task, in the same order.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    results: dict[str, T] = {}
    failures: dict[str, Failure] = {}

    def once(name: str) -> float | None:
        gc.collect()
        start = CLOCKS[clock]()
        try:
            results[name] = tasks[name]()
        except Exception as error:  # noqa: BLE001 - other tools may raise anything; the message is the result
            failures[name] = Failure(reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
            return None
        return CLOCKS[clock]() - start

    def run(name: str) -> None:
        seconds = once(name)
        if seconds is not None and seconds <= slow_s:
            seconds = once(name)  # the first run refills the caches after a slow task
        if seconds is not None:
            times[name].append(seconds)
            on_run(name, seconds)

    def is_slow(name: str) -> bool:
        return max(times[name], default=0.0) > slow_s

    def is_due(name: str) -> bool:
        return name not in failures and len(times[name]) < (slow_repeats if is_slow(name) else repeats)

    while any(is_due(name) for name in tasks):
        for name in tasks:
            if not is_due(name):
                continue
            run(name)
            if is_slow(name):
                for other in tasks:
                    if times[other] and other not in failures and not is_slow(other):
                        run(other)
    return {
        name: failures[name] if name in failures else Timing(times_s=tuple(times[name]), result=results[name])
        for name in tasks
    }


def times_faster(timing: Timing[T], baseline: Timing[T]) -> float:
    """How many times faster than a baseline of the same run: median of the baseline over median of the task."""
    return baseline.median_s / timing.median_s


def format_seconds(*seconds: float) -> str:
    """One duration, or several in the unit of the first: `12.3 ms`, `0.147 s`, `12.1 - 13.0 ms`."""
    if seconds[0] < MILLISECONDS_BELOW_S:
        return f"{' - '.join(f'{value * 1e3:.1f}' for value in seconds)} ms"
    digits = 3 if seconds[0] < 1 else 1
    return f"{' - '.join(f'{value:.{digits}f}' for value in seconds)} s"

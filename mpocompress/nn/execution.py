"""Choice of how a layer runs: from the cores, from the materialised weight, or by whichever is faster (`auto`).

A cost model estimates the seconds of every candidate. Candidates estimated to be over four times slower than the best
are discarded. The others are measured on the input at hand, and the fastest is remembered for all layers of the same
shape. With `MPOCOMPRESS_EXECUTION=modelled` the cost model decides alone, and results do not depend on a measurement.

The measured choices are module state, guarded by a lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch

from mpocompress.errors import ExecutionError
from mpocompress.nn.timing import best_times, clock_of

Name = TypeVar("Name", bound=str)

Execution = Literal["auto", "factorised", "materialised"]
"""Execution mode of a layer."""

VARIABLE = "MPOCOMPRESS_EXECUTION"
MODELLED = "modelled"
HOPELESS = 4.0
"""A candidate estimated to be this many times slower than the best is not measured."""
SHORT_S = 1e-3
"""A candidate estimated to take at most this long is measured anyway: call overhead matters there, and the estimate of
it is the least precise."""
CLEARLY = 1.08
"""A factorised candidate has to be faster than a materialised one by this factor."""
ROUNDS = 3
LEAST_S = 0.003
"""Every candidate runs for at least this long in a round, so that short ones can be compared."""

_measured: dict[Hashable, Any] = {}
_lock = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a layer.

    Args:
        mode: `factorised` or `materialised`.
        modelled_s: seconds estimated by the cost model.
        run: runs the layer on the input at hand; None if that must not be measured.
    """

    mode: str
    modelled_s: float
    run: Callable[[], object] | None = None


def checked(execution: str, where: str = "execution") -> Execution:
    """Return an execution mode, or raise an error if it is unknown.

    Args:
        execution: the requested mode.
        where: source of the mode, for the error.

    Raises:
        ExecutionError: it is not `auto`, `factorised` or `materialised`.
    """
    if execution not in get_args(Execution):
        raise ExecutionError(
            where=where,
            found=f"got {execution!r}",
            why="unknown execution mode",
            action=f"Give one of: {', '.join(get_args(Execution))}.",
        )
    mode: Execution = execution  # type: ignore[assignment]
    return mode


def in_force(execution: Execution) -> str:
    """Return the execution mode in use: the one of the environment variable if it is set.

    Args:
        execution: the mode of the layer.

    Returns:
        `auto`, `factorised`, `materialised` or `modelled`.

    Raises:
        ExecutionError: the environment variable has another value.
    """
    variable = os.environ.get(VARIABLE, "")
    return execution if not variable else variable if variable == MODELLED else checked(variable, where=VARIABLE)


def choose(candidates: Mapping[Name, Candidate], execution: str, key: Hashable) -> Name:
    """Return the name of the candidate to run.

    Args:
        candidates: name -> candidate.
        execution: result of `in_force`.
        key: everything that the measured times depend on: kind of layer, shape, sizes of the input, dtype, device.
    """
    allowed = {
        name: candidate
        for name, candidate in candidates.items()
        if execution in ("auto", MODELLED) or candidate.mode == execution
    }
    best_s = min(candidate.modelled_s for candidate in allowed.values())
    close = {
        name: candidate
        for name, candidate in allowed.items()
        if candidate.modelled_s <= max(HOPELESS * best_s, SHORT_S)
    }
    if len(close) == 1 or execution == MODELLED or any(candidate.run is None for candidate in close.values()):
        return min(close, key=lambda name: close[name].modelled_s)
    with _lock:
        full_key = (key, tuple(close), torch.get_num_threads())
        if full_key not in _measured:
            _measured[full_key] = _fastest(close)
        fastest: Name = _measured[full_key]
        return fastest


def forget_measurements() -> None:
    """Discard all measured choices, so that they are measured again."""
    with _lock:
        _measured.clear()


def bucket(number: int) -> int:
    """Return the next power of two: input sizes with the same one share a choice."""
    return 1 << max(number - 1, 0).bit_length()


def _fastest(candidates: Mapping[Name, Candidate]) -> Name:
    """Measure the candidates in turns, and return the name of the fastest."""
    runs = {name: candidate.run for name, candidate in candidates.items() if candidate.run is not None}
    clock = clock_of("cuda" if torch.cuda.is_available() else "cpu")
    times = best_times(runs, rounds=ROUNDS, least_s=LEAST_S, clock=clock)
    # If times are nearly equal, the mode that runs as a dense layer does cannot be a wrong choice.
    return min(times, key=lambda name: times[name] * (CLEARLY if candidates[name].mode == "factorised" else 1.0))

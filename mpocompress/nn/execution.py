"""How a layer runs: factorised, materialised, or whichever of them is faster here, found once and remembered.

A layer names its candidates with what a model of the cost says of each. Those that the model leaves no chance are out;
if several are left they are run, on the input at hand, and the fastest is kept for all layers of the same shape. Where
results must not depend on a measurement, `MPOCOMPRESS_EXECUTION=modelled` has the model decide alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from mpocompress.errors import ExecutionError
from mpocompress.nn.timing import best_times, clock_of

Execution = Literal["auto", "factorised", "materialised"]
"""How a layer is asked to run."""

VARIABLE = "MPOCOMPRESS_EXECUTION"
MODELLED = "modelled"
HOPELESS = 4.0
"""A candidate that the model takes for this many times slower than another is not measured."""
SHORT_S = 1e-3
"""One that takes no longer than this is measured all the same: calls, which the model knows least of, decide there."""
CLEARLY = 1.08
"""A factorised way has to be faster than a materialised one by this factor to be taken."""
ROUNDS = 3
LEAST_S = 0.003
"""Every candidate is run for at least this long in a round, so that short ones are told apart."""

_measured: dict[Hashable, str] = {}
_lock = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way to run a layer.

    Args:
        mode: `factorised` or `materialised`.
        modelled_s: seconds that the model of the cost gives it.
        run: runs it on the input at hand; None where it cannot be measured.
    """

    mode: str
    modelled_s: float
    run: Callable[[], object] | None = None


def checked(execution: str, where: str = "execution") -> Execution:
    """An execution that was asked for, refused if it is none.

    Args:
        execution: what was asked for.
        where: where, for the message.

    Returns:
        The same.

    Raises:
        ExecutionError: it is neither `auto` nor `factorised` nor `materialised`.
    """
    if execution not in get_args(Execution):
        raise ExecutionError(
            where=where,
            found=f"got {execution!r}",
            why="a layer runs factorised, materialised, or whichever is faster (auto)",
            action=f"Give one of: {', '.join(get_args(Execution))}.",
        )
    found: Execution = execution  # type: ignore[assignment]
    return found


def in_force(execution: Execution) -> str:
    """How a layer runs, the environment considered.

    Args:
        execution: what the layer is asked for.

    Returns:
        `auto`, `factorised`, `materialised` or `modelled`.

    Raises:
        ExecutionError: the environment variable says something else.
    """
    said = os.environ.get(VARIABLE, "")
    return execution if not said else said if said == MODELLED else checked(said, where=VARIABLE)


def choose(candidates: Mapping[str, Candidate], execution: str, key: Hashable) -> str:
    """The candidate to run.

    Args:
        candidates: by name.
        execution: as `in_force` gives it.
        key: what the choice depends on: kind of layer, shape, sizes of the input, dtype, device, threads.

    Returns:
        The name of one.
    """
    allowed = {
        name: one for name, one in candidates.items() if execution in ("auto", MODELLED) or one.mode == execution
    }
    best = min(one.modelled_s for one in allowed.values())
    able = {name: one for name, one in allowed.items() if one.modelled_s <= max(HOPELESS * best, SHORT_S)}
    if len(able) == 1 or execution == MODELLED or any(one.run is None for one in able.values()):
        return min(able, key=lambda name: able[name].modelled_s)
    with _lock:
        full = (key, tuple(able), torch.get_num_threads())
        if full not in _measured:
            _measured[full] = _fastest(able)
        return _measured[full]


def forget_measurements() -> None:
    """Forget which way was faster, so that it is measured again."""
    with _lock:
        _measured.clear()


def set_execution(model: nn.Module, execution: Execution) -> None:
    """Have all MPO layers of a model run in one way.

    Args:
        model: a module with MPO layers in it, or one.
        execution: `auto`, `factorised` or `materialised`.

    Raises:
        ExecutionError: it is none of them, or the model has no MPO layers; nothing has changed then.

    Example:
        >>> from mpocompress import MPO
        >>> from mpocompress.nn import MPOLinear, MPOWeight
        >>> weight = MPOWeight(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)]))
        >>> model = nn.Sequential(MPOLinear(weight))
        >>> set_execution(model, "materialised")
        >>> model[0].execution
        'materialised'
    """
    checked(execution)
    layers = [layer for layer in model.modules() if isinstance(layer, ExecutionChoice)]
    if not layers:
        raise ExecutionError(
            where=type(model).__name__,
            found="no MPO layer in it",
            why="only those are run in one way or another",
            action="Load a compressed file into the model first.",
        )
    for layer in layers:
        layer.execution = execution


class ExecutionChoice:
    """What all layers share that can be run in several ways."""

    execution: Execution


def bucket(number: int) -> int:
    """The next power of two: sizes of inputs between two of them share a choice."""
    return 1 << max(number - 1, 0).bit_length()


def _fastest(candidates: Mapping[str, Candidate]) -> str:
    """Measure the candidates in turns and return the name of the fastest."""
    runs = {name: candidate.run for name, candidate in candidates.items() if candidate.run is not None}
    clock = clock_of("cuda" if torch.cuda.is_available() else "cpu")
    times = best_times(runs, rounds=ROUNDS, least_s=LEAST_S, clock=clock)
    # Of nearly equal times, the mode that runs as a dense layer does cannot be a wrong choice.
    return min(times, key=lambda name: times[name] * (CLEARLY if candidates[name].mode == "factorised" else 1.0))

"""One level of an LSTM, in one or two directions, run in the way that suits it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpocompress.nn.cost import Work, sequence_seconds
from mpocompress.nn.direction import DirectionWeights
from mpocompress.nn.execution import MODELLED, Candidate, bucket, choose
from mpocompress.nn.gates import gate_scale, uses_numpy
from mpocompress.nn.loop import run
from mpocompress.nn.operands import Product
from mpocompress.nn.recurrence import recur, recur_plainly
from mpocompress.nn.steps import Direction

FACTORISED, FUSED, LOOP = "factorised", "fused", "loop"
"""Ways to run: with the cores; or multiplied out, by the kernel of torch or step by step."""

State = tuple[Tensor, Tensor]
"""Outputs and cell state between two steps, each of shape (batch, size)."""
RunOne = Callable[[Tensor, State], tuple[Tensor, State]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How the rows of a sequence belong to steps.

    Args:
        steps: how many steps there are.
        batch: rows of the first step; none has more.
        sizes: rows of every step, falling, of packed sequences; None where all steps have as many.
    """

    steps: int
    batch: int
    sizes: Tensor | None = None

    def stretches(self) -> list[tuple[int, int]]:
        """(steps, rows) of all stretches of steps with as many rows."""
        if self.sizes is None:
            return [(self.steps, self.batch)]
        rows, steps = torch.unique_consecutive(self.sizes, return_counts=True)
        return list(zip(steps.tolist(), rows.tolist(), strict=True))


def run_level(
    x: Tensor,  # shape: (time, batch, inputs), or (rows, inputs) of packed sequences
    states: Sequence[State],
    directions: Sequence[DirectionWeights],
    rows: Rows,
    *,
    execution: str,
    training: bool,
    made: dict[Hashable, Any] | None,
) -> tuple[Tensor, list[State]]:
    """Run over a sequence.

    Args:
        x: the inputs.
        states: before the first step, one for every direction.
        directions: the weights, forward and, if there are two, backward.
        rows: how the rows belong to steps.
        execution: as `in_force` gives it.
        training: what torch's own kernel is told.
        made: where operands are kept; None where gradients are wanted or the run is traced.

    Returns:
        The outputs of all directions side by side, laid out as `x`, and the states after the last step.
    """
    name = _chosen(x, states, directions, rows, execution=execution, training=training, made=made)
    return _run(name, x, states, directions, rows, training=training, made=made)


def _run(
    name: str,
    x: Tensor,
    states: Sequence[State],
    directions: Sequence[DirectionWeights],
    rows: Rows,
    *,
    training: bool,
    made: dict[Hashable, Any] | None,
) -> tuple[Tensor, list[State]]:
    """Run in one of the ways."""
    if name == FUSED:
        return _run_fused(x, states, directions, rows, training=training, made=made)
    wide = torch.promote_types(x.dtype, torch.float32)  # half types are computed in float32
    outputs, after = [], []
    for place, (weights, (h, c)) in enumerate(zip(directions, states, strict=True)):
        run_one = _with_gradients if made is None else _in_place
        one = partial(run_one, weights, place, name == LOOP, made, place == 1)
        y, (h, c) = _over_stretches(x.to(wide), (h.to(wide), c.to(wide)), rows, one, reverse=place == 1)
        outputs.append(y.to(x.dtype))
        after.append((h.to(x.dtype), c.to(x.dtype)))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)), after


def _in_place(
    weights: DirectionWeights,
    place: int,
    dense: bool,
    made: dict[Hashable, Any],
    reverse: bool,
    x: Tensor,
    state: State,
) -> tuple[Tensor, State]:
    """One direction over steps with as many rows, with operands that are kept."""
    h, c = state
    key = (place, dense, x.dtype, uses_numpy(c))
    direction = made.get(key)
    if direction is None:
        direction = _direction(weights, x.dtype, _dense(weights, place, made) if dense else None)
        made[key] = direction = direction.scaled(gate_scale(c))
    y, c = run(x, h, c, direction, reverse=reverse)
    return y, (y[0 if reverse else -1], c)


def _with_gradients(
    weights: DirectionWeights, place: int, dense: bool, made: None, reverse: bool, x: Tensor, state: State
) -> tuple[Tensor, State]:
    """One direction over steps with as many rows, differentiably."""
    direction = _direction(weights, x.dtype, weights.dense() if dense else None)
    share = direction.inputs(x.reshape(-1, x.shape[2])) + direction.bias
    over = recur_plainly if is_traced() else recur
    y, c = over(share.view(*x.shape[:2], -1), *state, direction.hidden, direction.projection, reverse=reverse)
    return y, (y[0 if reverse else -1], c)


def _over_stretches(x: Tensor, state: State, rows: Rows, run_one: RunOne, *, reverse: bool) -> tuple[Tensor, State]:
    """One direction over all steps: sequences that are over take no part in later steps."""
    if rows.sizes is None:
        return run_one(x, state)
    stretches = rows.stretches()
    pieces = list(torch.split(x, [steps * count for steps, count in stretches]))
    initial, current = state, tuple(part[:0] if reverse else part for part in state)
    outputs: list[Tensor] = []
    over: list[State] = []
    for (steps, count), piece in zip(
        *((reversed(stretches), reversed(pieces)) if reverse else (stretches, pieces)), strict=True
    ):
        h, c = current
        if reverse:  # longer sequences come first; the others begin at their own last step
            begun = len(h)
            h, c = (torch.cat([part, first[begun:count]]) for part, first in zip((h, c), initial, strict=True))
        else:
            over.append((h[count:], c[count:]))
            h, c = h[:count], c[:count]
        y, current = run_one(piece.view(steps, count, -1), (h, c))
        outputs.append(y.flatten(0, 1))
    if reverse:
        return torch.cat(outputs[::-1]), current
    last = [current, *over[::-1]]
    return torch.cat(outputs), (torch.cat([h for h, _ in last]), torch.cat([c for _, c in last]))


def _run_fused(
    x: Tensor,
    states: Sequence[State],
    directions: Sequence[DirectionWeights],
    rows: Rows,
    *,
    training: bool,
    made: dict[Hashable, Any] | None,
) -> tuple[Tensor, list[State]]:
    """All directions by the kernel of torch, multiplied out."""
    flat = [
        tensor.to(x.dtype)
        for place, weights in enumerate(directions)
        for tensor in (weights.dense() if made is None else _dense(weights, place, made))
    ]
    h, c = (torch.stack([state[part] for state in states]) for part in range(2))
    has_biases = bool(directions[0].biases)
    common = (flat, has_biases, 1, 0.0, training, len(directions) == 2)
    if rows.sizes is None:
        y, h, c = torch.lstm(x, (h, c), *common, False)
    else:
        y, h, c = torch.lstm(x, rows.sizes, (h, c), *common)
    return y, list(zip(h.unbind(0), c.unbind(0), strict=True))


def _direction(weights: DirectionWeights, dtype: torch.dtype, dense: Sequence[Tensor] | None) -> Direction:
    """The operands of a direction, or its multiplied-out weights as such."""
    direction = weights.direction(dtype)
    if dense is None:
        return direction
    return Direction(
        inputs=Product(operands=(dense[0].to(dtype).T,)),
        hidden=Product(operands=(dense[1].to(dtype).T,)),
        bias=direction.bias,
        projection=direction.projection,
    )


def _dense(weights: DirectionWeights, place: int, made: dict[Hashable, Any]) -> tuple[Tensor, ...]:
    """The multiplied-out weights, kept."""
    found = made.get((FUSED, place))
    if found is None:
        made[FUSED, place] = found = weights.dense()
    dense: tuple[Tensor, ...] = found
    return dense


def _chosen(
    x: Tensor,
    states: Sequence[State],
    directions: Sequence[DirectionWeights],
    rows: Rows,
    *,
    execution: str,
    training: bool,
    made: dict[Hashable, Any] | None,
) -> str:
    """The way to run; found once for sizes that are nearly the same."""
    key = (execution, bucket(rows.steps), bucket(rows.batch), x.dtype, torch.get_num_threads())
    if made is not None and key in made:
        kept: str = made[key]
        return kept
    trained, itemsize = made is None, x.dtype.itemsize
    sizes = [_work(weights) for weights in directions]
    seconds = partial(
        sequence_seconds, rows.steps, rows.batch, states[0][1].shape[-1], itemsize=itemsize, trained=trained
    )
    candidates = {}
    if not all(weights.is_dense for weights in directions):
        candidates[FACTORISED] = Candidate(
            mode="factorised", modelled_s=seconds([own for own, _ in sizes], fused=False)
        )
    elif execution == "factorised":
        execution = MODELLED
    dense = [whole for _, whole in sizes]
    candidates[FUSED] = Candidate(mode="materialised", modelled_s=seconds(dense, fused=True))
    if not trained:
        candidates[LOOP] = Candidate(mode="materialised", modelled_s=seconds(dense, fused=False))
        runs = partial(_run, x=x, states=states, directions=directions, rows=rows, training=training, made=made)
        candidates = {
            name: Candidate(mode=one.mode, modelled_s=one.modelled_s, run=partial(runs, name))
            for name, one in candidates.items()
        }
    shapes = tuple(
        (one.input_size, one.projection is not None, own) for one, (own, _) in zip(directions, sizes, strict=True)
    )
    name = choose(candidates, execution, ("lstm", *key[1:4], x.device.type, shapes))
    if made is not None:
        _keep_only(name, made)
        made[key] = name
    return name


def _keep_only(name: str, made: dict[Hashable, Any]) -> None:
    """Let go of what was made to measure a way that is not taken, but for what other sizes of the input take."""
    taken = {name, *(value for value in made.values() if isinstance(value, str))}
    for key in list(made):
        needed = {FUSED, LOOP} if key[0] == FUSED else {LOOP if key[1] is True else FACTORISED}  # type: ignore[index]
        if not isinstance(made[key], str) and not needed & taken:
            del made[key]


def _work(weights: DirectionWeights) -> tuple[Work, Work]:
    """The work with the cores, and with the multiplied-out weights."""
    inputs, hidden = weights.sizes()
    rows, columns = weights.shape
    return (
        Work(inputs=inputs[0], hidden=hidden[0], entries=hidden[1]),
        Work(inputs=rows * weights.input_size, hidden=rows * columns, entries=rows * columns),
    )


def is_traced() -> bool:
    """Whether the run is recorded, by `torch.export` or `torch.jit.trace`: nothing may then depend on memory or time."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def needs_gradients(tensors: Sequence[Tensor]) -> bool:
    """Whether a run has to be recorded for gradients.

    Args:
        tensors: all that it depends on.

    Returns:
        Whether gradients are enabled and one of them wants its own.
    """
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

"""Rows of a batch of sequences by step, and runs over packed sequences of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]
"""Outputs and cell state between two steps, each of shape (batch, size)."""
RunEven = Callable[[Tensor, State], tuple[Tensor, State]]
"""Runs over inputs of shape (time, batch, features) from a state; returns the outputs and the last state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a batch of sequences, by step.

    Args:
        steps: number of steps.
        batch: rows of the first step; no step has more.
        sizes: rows of every step of packed sequences, not increasing; None if all steps have `batch` rows.
    """

    steps: int
    batch: int
    sizes: Tensor | None = None

    def stretches(self) -> list[tuple[int, int]]:
        """Return (steps, rows) of all stretches of steps with the same number of rows.

        Example:
            >>> Rows(steps=4, batch=3, sizes=torch.tensor([3, 3, 2, 1])).stretches()
            [(2, 3), (1, 2), (1, 1)]
        """
        if self.sizes is None:
            return [(self.steps, self.batch)]
        rows, steps = torch.unique_consecutive(self.sizes, return_counts=True)
        return list(zip(steps.tolist(), rows.tolist(), strict=True))


def run_over(
    x: Tensor,  # shape: (time, batch, features), or (rows, features) of packed sequences
    state: State,
    rows: Rows,
    run_even: RunEven,
    *,
    reverse: bool,
) -> tuple[Tensor, State]:
    """Run over all steps; every sequence takes part in its own steps only.

    Args:
        x: the inputs.
        state: the state before the first step.
        rows: the rows of `x` by step.
        run_even: runs over steps with the same number of rows.
        reverse: whether to start with the last input.

    Returns:
        The outputs, laid out as `x`, and the state after the last step of every sequence.
    """
    if rows.sizes is None:
        return run_even(x, state)
    stretches = rows.stretches()
    pieces = torch.split(x, [steps * count for steps, count in stretches])
    even = [piece.view(steps, count, -1) for piece, (steps, count) in zip(pieces, stretches, strict=True)]
    return _backward(even, state, run_even) if reverse else _forward(even, state, run_even)


def _forward(pieces: list[Tensor], state: State, run_even: RunEven) -> tuple[Tensor, State]:
    """Run from the first step; sequences end one after another."""
    outputs, ended = [], []
    for piece in pieces:
        (h, c), count = state, piece.shape[1]
        ended.append((h[count:], c[count:]))
        y, state = run_even(piece, (h[:count], c[:count]))
        outputs.append(y.flatten(0, 1))
    last = [state, *reversed(ended)]
    return torch.cat(outputs), (torch.cat([h for h, _ in last]), torch.cat([c for _, c in last]))


def _backward(pieces: list[Tensor], initial: State, run_even: RunEven) -> tuple[Tensor, State]:
    """Run from the last step of the longest sequences; the others start at their own last step."""
    outputs = []
    h, c = initial[0][:0], initial[1][:0]
    for piece in reversed(pieces):
        started, count = len(h), piece.shape[1]
        state = torch.cat([h, initial[0][started:count]]), torch.cat([c, initial[1][started:count]])
        y, (h, c) = run_even(piece, state)
        outputs.append(y.flatten(0, 1))
    return torch.cat(outputs[::-1]), (h, c)

"""Replay of a run of an LSTM for an input of the same sizes, without checks or look-ups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mpocompress.nn.packed import State
from mpocompress.nn.single_step import DenseStep, SingleStep

Result = tuple[Tensor, State]


def replay_key(shape: Sequence[int], dtype: torch.dtype, hx: State | None) -> Hashable:
    """Return the key of a replay: the sizes and dtypes of a call.

    Args:
        shape: shape of the input as it was given.
        dtype: dtype of the input.
        hx: the given states.
    """
    states = None if hx is None else (hx[0].shape, hx[1].shape, hx[0].dtype, hx[1].dtype)
    return ("replay", tuple(shape), dtype, states)


class StepReplay:
    """One step through all levels.

    Args:
        levels: the steps of every level, one for each direction.
        batch_first: whether the input has shape (batch, 1, features).
    """

    def __init__(self, levels: Sequence[Sequence[SingleStep | DenseStep]], *, batch_first: bool) -> None:
        self._levels = levels
        self._time = 1 if batch_first else 0

    def __call__(self, x: Tensor, hx: State) -> Result:
        """Run the step."""
        x, (h, c) = x.squeeze(self._time), hx
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        for level in self._levels:
            before = len(hs)
            for step in level:
                output, cell = step(x, h[len(hs)], c[len(hs)])
                hs.append(output)
                cs.append(cell)
            x = hs[before] if len(level) == 1 else torch.cat(hs[before:], dim=1)
        cells = cs[0].unsqueeze(0) if len(cs) == 1 else torch.stack(cs)
        return x.unsqueeze(self._time), (torch.stack(hs), cells)


class FusedReplay:
    """All levels in one call of torch's kernel.

    Args:
        dense: the materialised weights of every direction, in the order of `torch.lstm`.
        has_biases: whether there are biases among them.
        levels: number of levels.
        directions: one or two.
        batch_first: whether the input has shape (batch, time, features).
        sizes: size of the outputs of one direction, and of the cell state.
    """

    def __init__(
        self,
        dense: Sequence[Sequence[Tensor]],
        *,
        has_biases: bool,
        levels: int,
        directions: int,
        batch_first: bool,
        sizes: tuple[int, int],
    ) -> None:
        weights = [tensor for direction in dense for tensor in direction]
        self._arguments = (weights, has_biases, levels, 0.0, False, directions == 2, batch_first)
        self._states, self._sizes, self._batch = levels * directions, sizes, 0 if batch_first else 1

    def __call__(self, x: Tensor, hx: State | None) -> Result:
        """Run over the sequences."""
        if hx is None:
            outputs, hidden = self._sizes
            h = x.new_zeros(self._states, x.shape[self._batch], outputs)
            hx = (h, h if outputs == hidden else x.new_zeros(self._states, x.shape[self._batch], hidden))
        y, h, c = torch.lstm(x, hx, *self._arguments)
        return y, (h, c)

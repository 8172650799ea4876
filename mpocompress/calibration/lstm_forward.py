"""Runs of LSTM layers in plain calls of torch, telling what every weight was multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

See = Callable[[str, Tensor, Tensor, Tensor | None], None]
"""Told a part of a layer (as `l0_reverse`, or `hr_l0` for a projection), the inputs of its weight, of shape
(..., cols), what came out before biases and gates, of shape (..., rows) and open to hooks on its gradient, and which of
them are real and not padding; None where all are."""

State = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelWeights:
    """The tensors of one level and direction.

    Args:
        ih: input to hidden, shape (4 * hidden, inputs).
        hh: hidden to hidden, shape (4 * hidden, outputs).
        bias: the sum of both biases; None without.
        hr: the projection, shape (outputs, hidden); None without.
    """

    ih: Tensor
    hh: Tensor
    bias: Tensor | None
    hr: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelRun:
    """What one level and direction did.

    Args:
        inputs: what the joint weight [W_ih W_hh] was multiplied with, shape (time, batch, inputs + outputs).
        outputs: shape (time, batch, outputs); zero in the padding.
        state: the last output and cell state.
    """

    inputs: Tensor
    outputs: Tensor
    state: State


def level_names(module: nn.LSTM) -> tuple[str, ...]:
    """The levels and directions of an LSTM, in the order they run: `l0`, `l0_reverse`, `l1`, ...

    Args:
        module: the layer.

    Returns:
        The ends of the names of their weights.

    Example:
        >>> level_names(nn.LSTM(2, 3, num_layers=2))
        ('l0', 'l1')
    """
    ends = ("", "_reverse") if module.bidirectional else ("",)
    return tuple(f"l{level}{end}" for level in range(module.num_layers) for end in ends)


def level_weights(module: nn.LSTM, name: str) -> LevelWeights:
    """The tensors of one level and direction.

    Args:
        module: the layer.
        name: as `level_names` gives it.

    Returns:
        The tensors, shared with the layer.
    """
    bias = getattr(module, f"bias_ih_{name}") + getattr(module, f"bias_hh_{name}") if module.bias else None
    return LevelWeights(
        ih=getattr(module, f"weight_ih_{name}"),
        hh=getattr(module, f"weight_hh_{name}"),
        bias=bias,
        hr=getattr(module, f"weight_hr_{name}") if module.proj_size else None,
    )


def run_level(
    x: Tensor,  # shape: (time, batch, inputs)
    state: State,
    weights: LevelWeights,
    real: Tensor | None,  # shape: (time, batch)
    see: See,
    name: str,
) -> LevelRun:
    """Run one level in one direction over a batch.

    Args:
        x: the inputs.
        state: outputs, shape (batch, outputs), and cell state, shape (batch, hidden), before the first step.
        weights: its tensors.
        real: which inputs are no padding; None for all.
        see: told what was multiplied.
        name: of the level and direction.

    Returns:
        What it did.
    """
    h, c = state
    share = nn.functional.linear(x, weights.ih, weights.bias)
    if torch.is_grad_enabled() and not share.requires_grad:
        share.requires_grad_()
    hidden = weights.hh.T
    before, outputs, let_out, projected = [], [], [], []
    steps = range(len(x))
    for step in reversed(steps) if name.endswith("_reverse") else steps:
        before.append(h)
        into, forget, new, out = (share[step] + h @ hidden).chunk(4, dim=1)
        new_c = forget.sigmoid() * c + into.sigmoid() * new.tanh()
        new_h = out.sigmoid() * new_c.tanh()
        if weights.hr is not None:
            let_out.append(new_h)
            new_h = new_h @ weights.hr.T
            projected.append(new_h)
        if real is not None:
            there = real[step][:, None]
            new_h, new_c = torch.where(there, new_h, h), torch.where(there, new_c, c)
            outputs.append(new_h * there)
        else:
            outputs.append(new_h)
        h, c = new_h, new_c
    if name.endswith("_reverse"):
        for one in (before, outputs, let_out, projected):
            one.reverse()
    inputs = torch.cat([x, torch.stack(before)], dim=2)
    see(name, inputs, share, real)
    if weights.hr is not None:
        for step, (let, after) in enumerate(zip(let_out, projected, strict=True)):
            see(f"hr_{name}", let, after, None if real is None else real[step])
    return LevelRun(inputs=inputs, outputs=torch.stack(outputs), state=(h, c))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """A batch of sequences as an LSTM takes them, every step in its place.

    Args:
        x: shape (time, batch, inputs).
        hidden: outputs before the first step of every level and direction, shape (levels, batch, outputs).
        cell: the same of the cell states.
        real: which inputs are no padding, shape (time, batch); None for all.
        packed: the sequences as they came, where they came packed.
        is_batch: whether they came as a batch.
    """

    x: Tensor
    hidden: Tensor
    cell: Tensor
    real: Tensor | None
    packed: PackedSequence | None
    is_batch: bool


def opened(module: nn.LSTM, x: Tensor | PackedSequence, state: State | None) -> Sequences:
    """The arguments of an `nn.LSTM` in one form.

    Args:
        module: the layer.
        x: its input.
        state: its initial state, or None for zeros.

    Returns:
        The sequences, those of a packed input in the order it keeps them in.
    """
    packed, real, is_batch = None, None, True
    if isinstance(x, PackedSequence):
        packed = x
        padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))
        real = torch.arange(len(padded))[:, None] < lengths
        real = real.to(padded.device)
    else:
        is_batch = x.dim() == 3
        padded = (x.transpose(0, 1) if module.batch_first else x) if is_batch else x[:, None]
    batch, count = padded.shape[1], module.num_layers * (2 if module.bidirectional else 1)
    if state is None:
        outputs = module.proj_size or module.hidden_size
        hidden, cell = (padded.new_zeros(count, batch, size) for size in (outputs, module.hidden_size))
    else:
        hidden, cell = state if is_batch else (state[0][:, None], state[1][:, None])
        if packed is not None and packed.sorted_indices is not None:
            hidden, cell = (one.index_select(1, packed.sorted_indices) for one in (hidden, cell))
    return Sequences(x=padded, hidden=hidden, cell=cell, real=real, packed=packed, is_batch=is_batch)


def run_lstm(
    module: nn.LSTM, x: Tensor | PackedSequence, state: State | None, see: See
) -> tuple[Tensor | PackedSequence, State]:
    """What `module(x, state)` gives in evaluation mode, telling what was multiplied on the way.

    Args:
        module: the layer.
        x: its input: a batch, one sequence, or packed sequences.
        state: its initial state, or None for zeros.
        see: told what every weight was multiplied with.

    Returns:
        As of `nn.LSTM`.

    Example:
        >>> layer, x = nn.LSTM(2, 3), torch.ones(5, 1, 2)
        >>> bool(torch.allclose(run_lstm(layer, x, None, lambda *_: None)[0], layer(x)[0]))
        True
    """
    given = opened(module, x, state)
    level_input, parts, last = given.x, [], []
    for number, name in enumerate(level_names(module)):
        before = (given.hidden[number], given.cell[number])
        run = run_level(level_input, before, level_weights(module, name), given.real, see, name)
        parts.append(run.outputs)
        last.append(run.state)
        if not module.bidirectional or name.endswith("_reverse"):
            level_input, parts = torch.cat(parts, dim=2), []
    hidden, cell = (torch.stack([one[place] for one in last]) for place in (0, 1))
    return _closed(module, given, level_input, (hidden, cell))


def _closed(module: nn.LSTM, given: Sequences, outputs: Tensor, state: State) -> tuple[Tensor | PackedSequence, State]:
    """Outputs and states in the form that the input came in."""
    if given.packed is not None:
        sizes, order = given.packed.batch_sizes, given.packed.unsorted_indices
        lengths = (sizes[:, None] > torch.arange(int(sizes[0]))).sum(dim=0)
        data = pack_padded_sequence(outputs, lengths).data
        if order is not None:
            state = (state[0].index_select(1, order), state[1].index_select(1, order))
        return PackedSequence(data, sizes, given.packed.sorted_indices, order), state
    if not given.is_batch:
        return outputs[:, 0], (state[0][:, 0], state[1][:, 0])
    return outputs.transpose(0, 1) if module.batch_first else outputs, state


def run_cell(module: nn.LSTMCell, x: Tensor, state: State | None, see: See) -> State:
    """What `module(x, state)` gives, telling what was multiplied.

    Args:
        module: the cell.
        x: its input, shape (batch, inputs) or (inputs,).
        state: its state before, or None for zeros.
        see: told what the joint weight was multiplied with.

    Returns:
        As of `nn.LSTMCell`.

    Example:
        >>> cell, x = nn.LSTMCell(2, 3), torch.ones(1, 2)
        >>> bool(torch.allclose(run_cell(cell, x, None, lambda *_: None)[0], cell(x)[0]))
        True
    """
    is_batch = x.dim() == 2
    rows = x if is_batch else x[None]
    if state is None:
        h = c = rows.new_zeros(len(rows), module.hidden_size)
    else:
        h, c = state if is_batch else (state[0][None], state[1][None])
    weights = LevelWeights(
        ih=module.weight_ih,
        hh=module.weight_hh,
        bias=module.bias_ih + module.bias_hh if module.bias else None,
        hr=None,
    )
    # One step of a sequence: the state it starts from stays open to gradients of the steps before.
    run = run_level(rows[None], (h, c), weights, None, lambda _, *seen: see("", *seen), "")
    new_h, new_c = run.state
    return (new_h, new_c) if is_batch else (new_h[0], new_c[0])

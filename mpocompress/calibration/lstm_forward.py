"""Forward pass of LSTM layers in plain calls of torch, which reports the inputs and outputs of every weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mpocompress.nn.operands import Product
from mpocompress.nn.packed import State
from mpocompress.nn.recurrence import recur_plainly

ObservePart = Callable[[str, Tensor, Tensor, Tensor | None], None]
"""Called for a part of a layer (such as `l0_reverse`, or `hr_l0` for a projection) with the inputs of its weight, shape
(..., cols); the outputs before biases and gates, shape (..., rows), which accept hooks on their gradient; and a mask of
the inputs that are not padding, None without padding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelWeights:
    """The tensors of one level and direction.

    Args:
        ih: input to hidden, shape (4 * hidden, inputs).
        hh: hidden to hidden, shape (4 * hidden, outputs).
        bias: the sum of both biases; None without biases.
        hr: the projection, shape (outputs, hidden); None without a projection.
    """

    ih: Tensor
    hh: Tensor
    bias: Tensor | None
    hr: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelResult:
    """The result of one level and direction.

    Args:
        inputs: inputs of the joint weight [W_ih W_hh], shape (time, batch, inputs + outputs).
        outputs: shape (time, batch, outputs); zero in the padding.
        state: the last output and cell state.
    """

    inputs: Tensor
    outputs: Tensor
    state: State


def level_names(module: nn.LSTM) -> tuple[str, ...]:
    """Return the suffixes of the weights of all levels and directions, in the order in which they run.

    Args:
        module: the layer.

    Example:
        >>> level_names(nn.LSTM(2, 3, num_layers=2))
        ('l0', 'l1')
    """
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return tuple(f"l{level}{suffix}" for level in range(module.num_layers) for suffix in suffixes)


def level_weights(module: nn.LSTM, name: str) -> LevelWeights:
    """Return the tensors of one level and direction, shared with the layer.

    Args:
        module: the layer.
        name: result of `level_names`.
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
    is_real: Tensor | None,  # shape: (time, batch)
    observe: ObservePart,
    name: str,
) -> LevelResult:
    """Run one level in one direction over a batch.

    Args:
        x: the inputs.
        state: outputs, shape (batch, outputs), and cell state, shape (batch, hidden), before the first step.
        weights: tensors of the level.
        is_real: which inputs are not padding; None without padding.
        observe: called with the inputs and outputs of every weight.
        name: name of the level and direction.
    """
    input_part = nn.functional.linear(x, weights.ih, weights.bias)
    if torch.is_grad_enabled() and not input_part.requires_grad:
        input_part.requires_grad_()
    run = recur_plainly(
        input_part,
        *state,
        Product(operands=(weights.hh.T,)),
        Product(operands=(weights.hr.T,)) if weights.hr is not None else None,
        reverse=name.endswith("_reverse"),
        is_real=is_real,
    )
    inputs = torch.cat([x, torch.stack(run.before)], dim=2)
    observe(name, inputs, input_part, is_real)
    if weights.hr is not None:
        for step, (unprojected, projected) in enumerate(zip(run.unprojected, run.projected, strict=True)):
            observe(f"hr_{name}", unprojected, projected, None if is_real is None else is_real[step])
    return LevelResult(inputs=inputs, outputs=run.outputs, state=run.state)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """The arguments of an LSTM as a padded batch, time first.

    Args:
        x: shape (time, batch, inputs).
        hidden: outputs before the first step of every level and direction, shape (levels, batch, outputs).
        cell: cell states before the first step, shape (levels, batch, hidden).
        is_real: which inputs are not padding, shape (time, batch); None without padding.
        packed: the packed input; None if the input was not packed.
        is_batch: whether the input had a batch dimension.
    """

    x: Tensor
    hidden: Tensor
    cell: Tensor
    is_real: Tensor | None
    packed: PackedSequence | None
    is_batch: bool


def as_sequences(module: nn.LSTM, x: Tensor | PackedSequence, state: State | None) -> Sequences:
    """Convert the arguments of an `nn.LSTM` to a padded batch.

    Args:
        module: the layer.
        x: its input.
        state: its initial state, or None for zeros.

    Returns:
        The sequences; those of a packed input keep its internal order.
    """
    packed, is_real, is_batch = None, None, True
    if isinstance(x, PackedSequence):
        packed = x
        padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))
        is_real = torch.arange(len(padded))[:, None] < lengths
        is_real = is_real.to(padded.device)
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
            hidden, cell = (part.index_select(1, packed.sorted_indices) for part in (hidden, cell))
    return Sequences(x=padded, hidden=hidden, cell=cell, is_real=is_real, packed=packed, is_batch=is_batch)


def run_lstm(
    module: nn.LSTM, x: Tensor | PackedSequence, state: State | None, observe: ObservePart
) -> tuple[Tensor | PackedSequence, State]:
    """Compute `module(x, state)` in evaluation mode, observed.

    Args:
        module: the layer.
        x: its input: a batch, a single sequence, or packed sequences.
        state: its initial state, or None for zeros.
        observe: called with the inputs and outputs of every weight.

    Returns:
        As for `nn.LSTM`.

    Example:
        >>> layer, x = nn.LSTM(2, 3), torch.ones(5, 1, 2)
        >>> bool(torch.allclose(run_lstm(layer, x, None, lambda *_: None)[0], layer(x)[0]))
        True
    """
    sequences = as_sequences(module, x, state)
    level_input, outputs, last = sequences.x, [], []
    for number, name in enumerate(level_names(module)):
        before = (sequences.hidden[number], sequences.cell[number])
        result = run_level(level_input, before, level_weights(module, name), sequences.is_real, observe, name)
        outputs.append(result.outputs)
        last.append(result.state)
        if not module.bidirectional or name.endswith("_reverse"):
            level_input, outputs = torch.cat(outputs, dim=2), []
    hidden, cell = (torch.stack([after[part] for after in last]) for part in (0, 1))
    return _as_given(module, sequences, level_input, (hidden, cell))


def _as_given(
    module: nn.LSTM, sequences: Sequences, outputs: Tensor, state: State
) -> tuple[Tensor | PackedSequence, State]:
    """Convert outputs and states to the form of the input."""
    if sequences.packed is not None:
        sizes, order = sequences.packed.batch_sizes, sequences.packed.unsorted_indices
        lengths = (sizes[:, None] > torch.arange(int(sizes[0]))).sum(dim=0)
        data = pack_padded_sequence(outputs, lengths).data
        if order is not None:
            state = (state[0].index_select(1, order), state[1].index_select(1, order))
        return PackedSequence(data, sizes, sequences.packed.sorted_indices, order), state
    if not sequences.is_batch:
        return outputs[:, 0], (state[0][:, 0], state[1][:, 0])
    return outputs.transpose(0, 1) if module.batch_first else outputs, state


def run_cell(module: nn.LSTMCell, x: Tensor, state: State | None, observe: ObservePart) -> State:
    """Compute `module(x, state)`, observed.

    Args:
        module: the cell.
        x: its input, shape (batch, inputs) or (inputs,).
        state: the state before the step, or None for zeros.
        observe: called with the inputs and outputs of the joint weight.

    Returns:
        As for `nn.LSTMCell`.

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
    # One step of a sequence; its initial state keeps its history, so that gradients reach the steps before.
    result = run_level(rows[None], (h, c), weights, None, lambda _, *observed: observe("", *observed), "")
    new_h, new_c = result.state
    return (new_h, new_c) if is_batch else (new_h[0], new_c[0])

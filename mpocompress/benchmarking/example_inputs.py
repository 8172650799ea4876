"""Inputs for the user's own model: made by the user's function, or guessed from the first layer that has weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.benchmarking.options import InputsFunction
from mpocompress.errors import InputsError
from mpocompress.text import shown
from mpocompress.user.batches import call_model, to_device
from mpocompress.user.code import describe_error, inputs_function

_SEED = 0
_WRITE_ONE = "Give a function that makes the inputs from a batch size and a length."


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsMaker:
    """How inputs are made.

    Args:
        make: makes them.
        said: what they are, in words.
        has_length: whether a length changes them.
    """

    make: InputsFunction
    said: str
    has_length: bool


def given_inputs(inputs: str | InputsFunction) -> InputsMaker:
    """Inputs that the user's function makes.

    Args:
        inputs: a function, or `file.py:name` or `package.module:name` of one, which is imported.

    Returns:
        How they are made.

    Raises:
        InputsError: the function cannot be imported.
    """
    if isinstance(inputs, str):
        return InputsMaker(make=inputs_function(inputs), said=f"those of {shown(inputs)}", has_length=True)
    return InputsMaker(make=inputs, said="the given ones", has_length=True)


def guessed_inputs(model: nn.Module) -> InputsMaker:
    """Random inputs, of the shape that the first layer with weights takes.

    Args:
        model: the dense model.

    Returns:
        How they are made.

    Raises:
        InputsError: that layer is of another kind than LSTM, GRU, RNN, Linear or Embedding.

    Example:
        >>> guessed_inputs(nn.LSTM(8, 16, batch_first=True)).make(2, 5).shape
        torch.Size([2, 5, 8])
    """
    path, layer = next(
        ((name, one) for name, one in model.named_modules() if any(True for _ in one.parameters(recurse=False))),
        ("", model),
    )
    kind = type(layer).__name__
    called = f"as {shown(path)}, its first layer ({kind}), takes" if path else f"as a {kind} takes"
    if isinstance(layer, nn.RNNBase):
        dtype, size, batch_first = next(layer.parameters()).dtype, layer.input_size, layer.batch_first
        return InputsMaker(
            make=lambda batch, length: _noise(
                *((batch, length) if batch_first else (length, batch)), size, dtype=dtype
            ),
            said=f"random numbers of shape {'(batch, length' if batch_first else '(length, batch'}, {size}), {called}",
            has_length=True,
        )
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return InputsMaker(
            make=lambda batch, length: torch.randint(layer.num_embeddings, (batch, length), generator=_generator()),
            said=f"random ids below {layer.num_embeddings} of shape (batch, length), {called}",
            has_length=True,
        )
    if isinstance(layer, nn.Linear | nn.RNNCellBase):
        size = layer.in_features if isinstance(layer, nn.Linear) else layer.input_size
        dtype = next(layer.parameters()).dtype
        return InputsMaker(
            make=lambda batch, _: _noise(batch, size, dtype=dtype),
            said=f"random numbers of shape (batch, {size}), {called}",
            has_length=False,
        )
    raise InputsError(
        where=type(model).__name__,
        found=f"{shown(path) or 'the model itself'}, a {kind}, is its first layer that has weights",
        why="inputs are guessed for LSTM, GRU, RNN, Linear and Embedding layers",
        action=_WRITE_ONE,
    )


def checked_inputs(maker: InputsMaker, batch: int, length: int, device: str) -> object:
    """Make inputs of one size, on a device.

    Args:
        maker: how.
        batch: inputs in a batch.
        length: steps of a sequence.
        device: where they go.

    Returns:
        A tensor, a tuple or a dict.

    Raises:
        InputsError: the function raises, or gives something else.
    """
    try:
        made = maker.make(batch, length)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputsError(
            where="inputs", found=describe_error(error), why="the inputs could not be made", action=_WRITE_ONE
        ) from error
    if not isinstance(made, Tensor | tuple | Mapping):
        raise InputsError(
            where="inputs",
            found=f"a {type(made).__name__}",
            why="a model is called with a tensor, a tuple of arguments, or a dict of named ones",
            action="Return one of these.",
        )
    return to_device(made, device)


def first_call(model: nn.Module, made: object, maker: InputsMaker) -> None:
    """Call a dense model once, so that what is wrong with its inputs is said before anything is measured.

    Args:
        model: the model.
        made: its inputs.
        maker: how they were made.

    Raises:
        InputsError: the model raises.
    """
    try:
        with torch.inference_mode():
            call_model(model, made)
    except Exception as error:
        raise InputsError(
            where=type(model).__name__,
            found=describe_error(error),
            why=f"the model does not take the inputs, {maker.said}",
            action=_WRITE_ONE,
        ) from error


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _noise(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=_generator()).to(dtype)

"""Inputs for the user's model: from the user's function, or random ones of the shape that the first layer accepts."""

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
_ACTION = "Give a function of a batch size and a length that returns the inputs."


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsMaker:
    """A function that makes inputs.

    Args:
        make: the function.
        description: description of the inputs, for notes and errors.
        has_length: whether the inputs depend on the length.
    """

    make: InputsFunction
    description: str
    has_length: bool


def given_inputs(inputs: str | InputsFunction) -> InputsMaker:
    """Return the user's function.

    Args:
        inputs: the function, or its `file.py:name` or `package.module:name`, which is imported.

    Raises:
        InputsError: the function cannot be imported.
    """
    if isinstance(inputs, str):
        return InputsMaker(make=inputs_function(inputs), description=f"the inputs of {shown(inputs)}", has_length=True)
    return InputsMaker(make=inputs, description="the given inputs", has_length=True)


def guessed_inputs(model: nn.Module) -> InputsMaker:
    """Return a function that makes random inputs of the shape that the first layer with weights accepts.

    Args:
        model: the dense model.

    Raises:
        InputsError: that layer is not an LSTM, GRU, RNN, Linear or Embedding layer.

    Example:
        >>> guessed_inputs(nn.LSTM(8, 16, batch_first=True)).make(2, 5).shape
        torch.Size([2, 5, 8])
    """
    path, layer = next(
        (
            (name, module)
            for name, module in model.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        ),
        ("", model),
    )
    kind = type(layer).__name__
    accepted = f"as its first layer, {shown(path)} ({kind}), accepts" if path else f"as a {kind} accepts"
    if isinstance(layer, nn.RNNBase):
        dtype, size, batch_first = next(layer.parameters()).dtype, layer.input_size, layer.batch_first
        return InputsMaker(
            make=lambda batch, length: _noise(
                *((batch, length) if batch_first else (length, batch)), size, dtype=dtype
            ),
            description=f"random numbers of shape {'(batch, length' if batch_first else '(length, batch'}, {size}), "
            f"{accepted}",
            has_length=True,
        )
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return InputsMaker(
            make=lambda batch, length: torch.randint(layer.num_embeddings, (batch, length), generator=_generator()),
            description=f"random ids below {layer.num_embeddings} of shape (batch, length), {accepted}",
            has_length=True,
        )
    if isinstance(layer, nn.Linear | nn.RNNCellBase):
        size = layer.in_features if isinstance(layer, nn.Linear) else layer.input_size
        dtype = next(layer.parameters()).dtype
        return InputsMaker(
            make=lambda batch, _: _noise(batch, size, dtype=dtype),
            description=f"random numbers of shape (batch, {size}), {accepted}",
            has_length=False,
        )
    raise InputsError(
        where=type(model).__name__,
        found=f"its first layer with weights is {shown(path) or 'the model itself'}, a {kind}",
        why="inputs can be derived only for LSTM, GRU, RNN, Linear and Embedding layers",
        action=_ACTION,
    )


def make_inputs(maker: InputsMaker, batch: int, length: int, device: str) -> object:
    """Make inputs of one size on a device.

    Args:
        maker: the function that makes them.
        batch: batch size.
        length: length of the sequences, in steps.
        device: the device.

    Returns:
        A tensor, a tuple or a dict.

    Raises:
        InputsError: the function raises an error, or returns something else.
    """
    try:
        inputs = maker.make(batch, length)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputsError(
            where="inputs", found=describe_error(error), why="the inputs could not be made", action=_ACTION
        ) from error
    if not isinstance(inputs, Tensor | tuple | Mapping):
        raise InputsError(
            where="inputs",
            found=f"a {type(inputs).__name__}",
            why="a model is called with a tensor, a tuple of arguments, or a dict of named arguments",
            action="Return one of these.",
        )
    return to_device(inputs, device)


def check_inputs(model: nn.Module, inputs: object, maker: InputsMaker) -> None:
    """Call a dense model once, to find invalid inputs before anything is measured.

    Args:
        model: the model.
        inputs: its inputs.
        maker: the function that made them.

    Raises:
        InputsError: the model raises an error.
    """
    try:
        with torch.inference_mode():
            call_model(model, inputs)
    except Exception as error:
        raise InputsError(
            where=type(model).__name__,
            found=describe_error(error),
            why=f"the model does not accept the inputs, {maker.description}",
            action=_ACTION,
        ) from error


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def _noise(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=_generator()).to(dtype)

"""States of recurrent layers carried from one batch to the next, for batches that are consecutive pieces of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpocompress.errors import FinetuneError, FormatError
from mpocompress.nn import MPOLSTM
from mpocompress.text import shown

States = dict[str, tuple[Tensor, ...]]
"""Path of a layer -> its state: the hidden and cell state of an LSTM, the hidden state of other layers."""


class StatefulRNN:
    """Hooks that start every recurrent layer of a model from the state that it ended the previous batch with.

    States have no gradients: backpropagation stops at the start of a batch. A layer to which
    the model passes a state uses that one. A batch of another size starts without a state.

    Args:
        model: the model; `remove` takes the hooks off.

    Raises:
        FinetuneError: the model has no recurrent layer, or a bidirectional one.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.RNNBase | MPOLSTM)}
        bidirectional = next((path for path, layer in layers.items() if layer.bidirectional), None)
        if not layers or bidirectional is not None:
            is_found = bidirectional is not None
            raise FinetuneError(
                where="carry_state",
                found=f"{shown(bidirectional or '')}, a bidirectional layer" if is_found else "no recurrent layer",
                why="only layers that read forward have a state at the end of a batch",
                action="Train without carrying the state.",
            )
        self.states: States = {}
        self._layers = layers
        self._is_active = True
        self._handles = []
        for path, layer in layers.items():
            self._handles += [
                layer.register_forward_pre_hook(self._before(path), with_kwargs=True),
                layer.register_forward_hook(self._after(path)),
            ]

    def reset(self) -> None:
        """Start the next batch without states."""
        self.states = {}

    def restore(self, states: States, where: str) -> None:
        """Continue from states that were read from a file.

        Args:
            states: states of the layers of this model.
            where: the file, for the error.

        Raises:
            FormatError: they do not fit the layers.
        """
        unfit = [path for path, state in states.items() if path not in self._layers or not self._fits(path, state)]
        if unfit:
            raise FormatError(
                where=Path(where).name,
                found=f"a state that does not fit layer {shown(unfit[0])}",
                why="the run belongs to another model, or is damaged",
                action="Resume with the same model, or start again without resuming.",
            )
        self.states = states

    def _fits(self, path: str, state: tuple[Tensor, ...]) -> bool:
        layer: Any = self._layers[path]
        has_cell = isinstance(layer, nn.LSTM | MPOLSTM)
        widths = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if has_cell else 1]
        return [tensor.shape[-1] for tensor in state] == widths and all(
            tensor.dim() in (2, 3) and tensor.shape[0] == layer.num_layers for tensor in state
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither pass on nor keep states in the block."""
        before, self._is_active = self._is_active, False
        try:
            yield
        finally:
            self._is_active = before

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Start without states in the block, and restore them after it."""
        before, self.states = self.states, {}
        try:
            yield
        finally:
            self.states = before

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(self, path: str) -> Any:
        def pass_state(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            given = args[1] if len(args) > 1 else kwargs.get("hx")
            state = self.states.get(path)
            if not self._is_active or given is not None or state is None:
                return None
            inputs = args[0] if args else kwargs["input"]
            if isinstance(inputs, PackedSequence) or _sequences(layer, inputs) != _state_sequences(state):
                self.states.pop(path)
                return None
            hx: Any = state if isinstance(layer, nn.LSTM | MPOLSTM) else state[0]
            others = {name: value for name, value in kwargs.items() if name not in ("input", "hx")}
            return (inputs,), {**others, "hx": hx}

        return pass_state

    def _after(self, path: str) -> Any:
        def keep_state(layer: Any, args: tuple[Any, ...], output: tuple[Any, Any]) -> None:
            if self._is_active and not isinstance(output[0], PackedSequence):
                state = output[1] if isinstance(output[1], tuple) else (output[1],)
                self.states[path] = tuple(tensor.detach() for tensor in state)

        return keep_state


def _sequences(layer: Any, inputs: Tensor) -> int | None:
    """Return the number of sequences in the inputs of a layer; None without a batch dim."""
    return None if inputs.dim() < 3 else inputs.shape[0 if layer.batch_first else 1]


def _state_sequences(state: tuple[Tensor, ...]) -> int | None:
    return None if state[0].dim() < 3 else state[0].shape[1]


def flatten_states(states: States, prefix: str) -> dict[str, Tensor]:
    """Return states as named tensors.

    Args:
        states: the states.
        prefix: prefix of the names.
    """
    return {f"{prefix}{number}.{path}": part for path, state in states.items() for number, part in enumerate(state)}


def unflatten_states(tensors: Mapping[str, Tensor], prefix: str) -> States:
    """Return the states that `flatten_states` made these named tensors of.

    Args:
        tensors: name -> tensor; names without the prefix are ignored.
        prefix: prefix of the names.

    Example:
        >>> import torch
        >>> named = flatten_states({"lstm": (torch.zeros(2), torch.ones(2))}, "state.")
        >>> unflatten_states(named, "state.")["lstm"][1]
        tensor([1., 1.])
    """
    states: States = {}
    for name in sorted(name for name in tensors if name.startswith(prefix)):
        _, _, path = name.removeprefix(prefix).partition(".")
        states[path] = (*states.get(path, ()), tensors[name])
    return states

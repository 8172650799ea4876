"""The memory of recurrent layers carried from one batch to the next, for models of texts that go on."""

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

Memory = dict[str, tuple[Tensor, ...]]
"""Path of a layer -> its state: of an LSTM hidden and cell state, else the hidden state."""


class Carrier:
    """Gives every recurrent layer of a model, where it is called without a state, the one it ended with before.

    States have no gradients: backpropagation ends at the border of a batch. A layer that the model itself gives a state
    keeps to that. A batch of another size begins anew.

    Args:
        model: the model; it gets hooks, which `remove` takes off.

    Raises:
        FinetuneError: it has no such layer, or one that reads backwards.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = {path: one for path, one in model.named_modules() if isinstance(one, nn.RNNBase | MPOLSTM)}
        backwards = next((path for path, one in layers.items() if one.bidirectional), None)
        if not layers or backwards is not None:
            raise FinetuneError(
                where="a state that is carried on",
                found=f"{shown(backwards)}, a bidirectional layer" if backwards is not None else "no recurrent layer",
                why="there is no state at the end of a batch that the next one could begin with",
                action="Train without carrying the state.",
            )
        self.memory: Memory = {}
        self._layers = layers
        self._is_active = True
        self._handles = []
        for path, layer in layers.items():
            self._handles += [
                layer.register_forward_pre_hook(self._before(path), with_kwargs=True),
                layer.register_forward_hook(self._after(path)),
            ]

    def forget(self) -> None:
        """Let the next batch begin without a memory."""
        self.memory = {}

    def take(self, memory: Memory, where: str) -> None:
        """Go on from a memory that was read from a file.

        Args:
            memory: of the layers of this model.
            where: the file, for the message.

        Raises:
            FormatError: it is of other layers.
        """
        odd = [path for path, state in memory.items() if path not in self._layers or not self._fits(path, state)]
        if odd:
            raise FormatError(
                where=Path(where).name,
                found=f"a carried state that does not fit {shown(odd[0])}",
                why="the run is of another model, or damaged",
                action="Resume with the same model, or start again without resuming.",
            )
        self.memory = memory

    def _fits(self, path: str, state: tuple[Tensor, ...]) -> bool:
        layer: Any = self._layers[path]
        has_cell = isinstance(layer, nn.LSTM | MPOLSTM)
        widths = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if has_cell else 1]
        return [one.shape[-1] for one in state] == widths and all(
            one.dim() in (2, 3) and one.shape[0] == layer.num_layers for one in state
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the model run as without hooks in the block."""
        before, self._is_active = self._is_active, False
        try:
            yield
        finally:
            self._is_active = before

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """Begin without a memory in the block, and go on with the one from before after it."""
        before, self.memory = self.memory, {}
        try:
            yield
        finally:
            self.memory = before

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(self, path: str) -> Any:
        def give(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            given = args[1] if len(args) > 1 else kwargs.get("hx")
            state = self.memory.get(path)
            if not self._is_active or given is not None or state is None:
                return None
            inputs = args[0] if args else kwargs["input"]
            if isinstance(inputs, PackedSequence) or _batch(layer, inputs) != _held(state):
                self.memory.pop(path)
                return None
            held: Any = state if isinstance(layer, nn.LSTM | MPOLSTM) else state[0]
            return (inputs,), {**{name: one for name, one in kwargs.items() if name not in ("input", "hx")}, "hx": held}

        return give

    def _after(self, path: str) -> Any:
        def take(layer: Any, args: tuple[Any, ...], output: tuple[Any, Any]) -> None:
            if self._is_active and not isinstance(output[0], PackedSequence):
                state = output[1] if isinstance(output[1], tuple) else (output[1],)
                self.memory[path] = tuple(one.detach() for one in state)

        return take


def _batch(layer: Any, inputs: Tensor) -> int | None:
    """How many sequences a layer is called with; None for one without a dim for them."""
    return None if inputs.dim() < 3 else inputs.shape[0 if layer.batch_first else 1]


def _held(state: tuple[Tensor, ...]) -> int | None:
    return None if state[0].dim() < 3 else state[0].shape[1]


def flattened(memory: Memory, head: str) -> dict[str, Tensor]:
    """A memory as named tensors.

    Args:
        memory: the memory.
        head: what the names begin with.

    Returns:
        Name -> tensor.
    """
    return {f"{head}{number}.{path}": one for path, state in memory.items() for number, one in enumerate(state)}


def restored(tensors: Mapping[str, Tensor], head: str) -> Memory:
    """A memory from named tensors, the way back from `flattened`.

    Args:
        tensors: name -> tensor; other names are left out.
        head: what the names begin with.

    Returns:
        The memory.

    Example:
        >>> import torch
        >>> restored(flattened({"lstm": (torch.zeros(2), torch.ones(2))}, "memory."), "memory.")["lstm"][1]
        tensor([1., 1.])
    """
    found: Memory = {}
    for name in sorted(name for name in tensors if name.startswith(head)):
        _, _, path = name.removeprefix(head).partition(".")
        found[path] = (*found.get(path, ()), tensors[name])
    return found

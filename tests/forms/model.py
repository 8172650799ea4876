"""The one small model that is saved in every form."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

Kind = TypeVar("Kind", bound=type)

CLASSES = {"embed": "Embedding", "lstm": "LSTM", "norm": "LayerNorm", "fc": "Linear", "out": "Linear"}
"""What a file that records classes says of each part."""


class Net(nn.Module):
    """An embedding, a stacked bidirectional LSTM and two Linear layers, every side of them 64 or more."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 96)
        self.lstm = nn.LSTM(96, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(128)
        self.fc = nn.Linear(128, 96)
        self.out = nn.Linear(96, 80)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.lstm(self.embed(tokens))[0]
        scores: Tensor = self.out(torch.relu(self.fc(self.norm(found))))
        return scores


TOKENS = torch.arange(6).reshape(2, 3)
"""An input of the model, for what has to run it once."""


def model(kind: type[Net] = Net) -> Net:
    """The model with its one set of weights, ready to be used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights by name, a fresh dict of the same tensors."""
    return dict(_state(dtype))


@cache
def _state(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in model().state_dict().items()}


@contextmanager
def gone_afterwards(name: str) -> Iterator[ModuleType]:
    """A Python module that exists inside the block only: what is pickled from it cannot be imported afterwards.

    `__main__` is left in place and loses what the block put into it.
    """
    if name in sys.modules:
        module = sys.modules[name]
        before = set(vars(module))
        yield module
        for added in set(vars(module)) - before:
            delattr(module, added)
        return
    module = sys.modules[name] = ModuleType(name)
    try:
        yield module
    finally:
        del sys.modules[name]


def put(module: ModuleType, kind: Kind) -> Kind:
    """Make a class one of the module: found there by its name, and pickled as such."""
    kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
    setattr(module, kind.__name__, kind)
    return kind

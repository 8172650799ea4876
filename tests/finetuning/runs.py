"""Small models and data to fine-tune, and what is compared of them before and after."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.finetuning.finetune_module import FinetuneResult, finetune_module
from mpocompress.finetuning.progress import FinetuneProgress
from mpocompress.layers.selection import Selection
from mpocompress.modules.compress import compress_module
from mpocompress.planning.targets import Truncation
from tests.calibration.trial_models import inputs, numbers

WIDTH, OUTPUTS = 12, 10


class Texts(nn.Module):
    """A language model: token ids of shape (batch, time) to scores of shape (batch, time, tokens)."""

    def __init__(self, tokens: int = 11, width: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, tokens)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.drop(self.lstm(self.embed(ids))[0]))
        return scores


class Odd(nn.Module):
    """Dropout, batch norm, a layer that is used twice, and one whose weight is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.3)
        self.tied = nn.Linear(WIDTH, WIDTH, bias=False)
        self.last = nn.Linear(WIDTH, OUTPUTS)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.tied(self.drop(self.norm(self.first(torch.tanh(self.first(x)))))))
        return y


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, OUTPUTS))


@cache
def _made(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = make()
    with torch.no_grad():
        for each in teacher.parameters():
            each.mul_(2.0)
    return teacher, compress_module(
        teacher, truncation=Truncation(max_bond=3), selection=Selection(min_side=8), jobs=1
    )[0]


def pair(make: Callable[[], nn.Module] = plain) -> tuple[Any, Any]:
    """A compressed model, and the original of it; the same every time, and nobody else's."""
    teacher, student = _made(make)
    return copy.deepcopy(student), copy.deepcopy(teacher)


def batches(count: int = 8, size: int = 6) -> list[Tensor]:
    return inputs(count, size, WIDTH)


def texts(count: int = 8, size: int = 3, length: int = 5) -> list[Tensor]:
    return [(numbers(size, length, seed=seed).abs() * 1000).long() % 11 for seed in range(count)]


def pairs(count: int = 8, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    return [(x, numbers(len(x), OUTPUTS, seed=500 + seed)) for seed, x in enumerate(batches(count, size))]


def tuned(model: nn.Module, data: object, **options: Any) -> FinetuneResult:
    """Train a few steps, in float32."""
    return finetune_module(model, data, **{"steps": 6, "precision": "float32", **options})


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The names of what differs."""
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


class CrashError(Exception):
    """Raised in the middle of a run."""


def at(step: int, act: Callable[[], object]) -> Callable[[FinetuneProgress], None]:
    """A callback that does something after a step."""

    def told(now: FinetuneProgress) -> None:
        if now.step == step:
            act()

    return told


def crash() -> None:
    raise CrashError


def interrupt() -> None:
    """Do what Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def random_texts() -> Iterator[Tensor]:
    """Batches that are drawn from the global generator."""
    for _ in range(5):
        yield torch.randint(11, (3, 5))


def random_rows() -> Iterator[Tensor]:
    """Batches that are drawn from the global generator."""
    for _ in range(5):
        yield torch.randn(6, WIDTH)

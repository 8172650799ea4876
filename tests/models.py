"""Models that are compressed and loaded, and what is compared of them before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpocompress.compression.compress import compress
from mpocompress.compression.expand import expand
from mpocompress.layers.selection import LSTMChoice, Selection
from mpocompress.modules import load as loading
from mpocompress.planning.targets import Truncation
from mpocompress.reports.compression import Report
from tests.draw import decaying, random_matrix

BOND = 6


class OwnLinear(nn.Linear):
    """Runs in its own way."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.linear(input, torch.mul(self.weight, 2), self.bias)


class Head(nn.Module):
    """Owns a matrix, and is no layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(12, 24))
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class Net(nn.Module):
    """A layer of every kind, and some that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = nn.LSTMCell(48, 24)
        self.norm = nn.BatchNorm1d(24)
        self.own = OwnLinear(24, 24)
        self.fc = nn.Linear(24, 24)
        self.head = Head()

    def forward(self, words: Tensor) -> Tensor:  # shape: (batch, time) -> (batch, 12)
        out, _ = self.lstm(self.embed(words))
        mean = out.mean(1)
        h, _ = self.cell(mean, self.cell(mean))
        y: Tensor = self.head(self.fc(self.own(self.norm(h))))
        return y


class Gru(Net):
    """Another recurrent layer under the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.GRU(16, 24, num_layers=2, bidirectional=True, batch_first=True)  # type: ignore[assignment]


WORDS = torch.arange(24).reshape(4, 6) % 9


def load(source: Any, model: Any, **options: Any) -> Any:
    """As the library does; whatever the type checker thinks of what the model has become."""
    return loading.load(source, model, **options)


def filled(model: Any, seed: int = 0) -> Any:
    """A model with values as trained ones have them, in evaluation mode."""
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            if tensor.dim() == 2:
                tensor.copy_(decaying(tensor.shape[0], tensor.shape[1], seed + number, 0.8))
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(random_matrix(1, tensor.numel(), seed + number)[0].abs() + 0.1)
    return model.eval()


def compressed(
    folder: Path,
    model: nn.Module,
    *,
    suffix: str = ".pt",
    prefix: str = "",
    lstm: LSTMChoice = "auto",
    whole: bool = False,
    bond: int = BOND,
    **options: Any,
) -> Path:
    """The model saved and compressed."""
    source, target = folder / "model.pt", folder / f"small{suffix}"
    torch.save(model if whole else {prefix + name: value for name, value in model.state_dict().items()}, source)
    truncation = options.pop("truncation", Truncation(max_bond=bond))
    selection = options.pop("selection", Selection(min_side=8, lstm=lstm))
    compress(source, target, truncation=truncation, selection=selection, jobs=1, overwrite=True, **options)
    return target


def expanded(small: Path, model: Any, *, prefix: str = "") -> Any:
    """A copy of the dense model with the values of a compressed file."""
    dense = small.with_name("expanded.pt")
    expand(small, dense, overwrite=True)
    twin = copy.deepcopy(model)
    twin.load_state_dict({name.removeprefix(prefix): value for name, value in torch.load(dense).items()})
    return twin.eval()


def state_of(model: Any) -> tuple[Any, ...]:
    """Everything that a failure must leave alone: which objects are where, and their values."""
    modules = [(path, id(module), type(module), module.training) for path, module in model.named_modules()]
    order = [list(module._parameters) + list(module._buffers) + list(module._modules) for module in model.modules()]
    tensors = [
        (name, id(value), value.requires_grad, None if torch.nn.parameter.is_lazy(value) else value.tolist())
        for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    ]
    return modules, order, tensors


def close(one: Tensor, other: Tensor) -> None:
    """Compare outputs of float32 cores and of what they multiply out to: a few hundred roundings of numbers near 1."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def same_report(report: Report, other: Report, change: Callable[[str], str] = lambda name: name) -> None:
    """Compare what two reports say of their matrices, up to their names."""
    figures = [
        (change(m.name), m.kind, m.shape, m.bonds, m.relative_error, m.discarded_weights, m.dtype, m.reason)
        for m in report.matrices
    ]
    assert figures == [
        (m.name, m.kind, m.shape, m.bonds, m.relative_error, m.discarded_weights, m.dtype, m.reason)
        for m in other.matrices
    ]

"""Small models with weights as trained ones have them, their checkpoints and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.calibration.batches import read_batches
from mpocompress.calibration.trial_model import TrialModel
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.reader import open_checkpoint
from tests.draw import random_matrix


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return random_matrix(1, int(torch.tensor(shape).prod()), seed)[0].reshape(shape).float()


def inputs(count: int = 8, batch: int = 6, width: int = 12) -> list[Tensor]:
    """Batches whose inputs lie near a plane of few directions, as real ones do."""
    directions = numbers(3, width, seed=99)
    return [
        numbers(batch, 3, seed=seed) @ directions + 0.05 * numbers(batch, width, seed=seed + 50) + 0.5
        for seed in range(count)
    ]


class Calls(nn.Module):
    """A module called in a way of the test's own."""

    def __init__(self, call: Callable[[Any, Any], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.call = call

    def forward(self, x: Any) -> Any:
        return self.call(self, x)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))


def saved(folder: Path, model: nn.Module | dict[str, Tensor]) -> Path:
    path = folder / "model.pt"
    torch.save(model.state_dict() if isinstance(model, nn.Module) else model, path)
    return path


def opened(folder: Path, model: nn.Module | dict[str, Tensor]) -> Checkpoint:
    return open_checkpoint(saved(folder, model))


def rig_of(
    folder: Path, model: nn.Module, batches: Iterable[object] | None = None, *, targets: bool = False, **options: Any
) -> TrialModel:
    """A trial_model of a model with its own weights."""
    calibration = read_batches(inputs() if batches is None else batches, has_targets=targets)
    with opened(folder, model) as checkpoint:
        return TrialModel(model, checkpoint, calibration, **options)


def values(model: nn.Module) -> Sequence[Tensor]:
    return [tensor.detach().clone() for tensor in model.state_dict().values()]

"""Distributed training: rank, number of processes and collectives, which do nothing in a single process."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.process_rank import world_size

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The processes that train together.

    Args:
        rank: number of this process; process 0 evaluates, writes files and prints.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of a number over all processes, the same in each."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=_collective_device())
        distributed.all_reduce(total)
        return float(total)

    def broadcast(self, compute: Callable[[], Value]) -> Value:
        """Return in every process what a function returns in process 0; the others do not call it."""
        if self.size == 1:
            return compute()
        values: list[Any] = [compute() if self.is_rank_zero else None]
        distributed.broadcast_object_list(values, src=0, device=_collective_device())
        value: Value = values[0]
        return value

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with their values in process 0."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), src=0)

    def wrap(self, model: nn.Module, *, has_unused: bool) -> nn.Module:
        """Return a model whose gradients are averaged over all processes; the model itself in a single process.

        Args:
            model: the model.
            has_unused: whether a trained parameter has no effect on the output.
        """
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=has_unused)


def join_team(device: torch.device) -> Team:
    """Return the processes that were started together, as by torchrun.

    If the environment announces several processes, a process group is created unless there is one. It lasts until the
    process ends: a second one would read the addresses of the first from their store, and wait for ever.

    Args:
        device: device of the model.

    Raises:
        FinetuneError: the other processes cannot be reached.
    """
    if not distributed.is_available() or (not distributed.is_initialized() and world_size() < 2):
        return Team()
    if not distributed.is_initialized():
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_leave)
        except (ValueError, RuntimeError) as error:
            raise FinetuneError(
                where="distributed training",
                found=str(error).splitlines()[0],
                why="WORLD_SIZE is larger than 1, but the processes could not connect",
                action="Start them with torchrun, or unset WORLD_SIZE.",
            ) from error
    return Team(rank=distributed.get_rank(), size=distributed.get_world_size())


def _collective_device() -> torch.device:
    """Return a device that the backend communicates from."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")


def _leave() -> None:
    if distributed.is_initialized():
        gc.collect()  # threads of a group that is still referred to, as by a wrapped model, can crash the exit
        distributed.destroy_process_group()

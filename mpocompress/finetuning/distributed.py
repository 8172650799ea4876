"""The processes that train together, one of them being alone as well."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mpocompress.errors import FinetuneError


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Which of how many processes this is.

    Args:
        rank: its number; the one with 0 measures, writes and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that measures, writes and speaks."""
        return self.rank == 0

    def summed(self, values: list[float]) -> list[float]:
        """Add numbers up over all processes.

        Args:
            values: the numbers of this process.

        Returns:
            The sums, the same in every process.
        """
        if self.size == 1:
            return values
        held = torch.tensor(values, dtype=torch.float64, device=_device())
        distributed.all_reduce(held)
        return held.tolist()

    def told(self, value: Any) -> Any:
        """What the leading process knows.

        Args:
            value: a plain value; only that of the leading process matters.

        Returns:
            That value, in every process.
        """
        if self.size == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0, device=_device())
        return held[0]

    def shared(self, tensors: list[Tensor]) -> None:
        """Give tensors the values that they have in the leading process.

        Args:
            tensors: written to.
        """
        if self.size > 1:
            for one in tensors:
                distributed.broadcast(one.detach(), src=0)

    def wrapped(self, model: nn.Module, *, has_unused: bool) -> nn.Module:
        """A model whose gradients are the mean over all processes.

        Args:
            model: the model.
            has_unused: whether some trained parameter takes no part in the output.

        Returns:
            The model itself where there is one process.
        """
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=has_unused)


def leads() -> bool:
    """Whether this process is the one that writes and speaks, be there a team or not.

    Example:
        >>> leads()
        True
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or int(os.environ.get("RANK", "0")) == 0


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")


def team(device: torch.device) -> Team:
    """The processes that were started together, as by torchrun.

    A process group is made where there is none and the environment says that there are several processes. It is ended
    with the process: a second one would read the addresses of the first from their store, and wait for ever.

    Args:
        device: where the model is.

    Returns:
        The team.

    Raises:
        FinetuneError: the others cannot be reached.
    """
    if not distributed.is_available() or (
        not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) < 2
    ):
        return Team()
    if not distributed.is_initialized():
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_end)
        except (ValueError, RuntimeError) as error:
            raise FinetuneError(
                where="processes that train together",
                found=str(error).splitlines()[0],
                why="WORLD_SIZE says that there are several, and they cannot be joined",
                action="Start them with torchrun, or unset WORLD_SIZE.",
            ) from error
    return Team(rank=distributed.get_rank(), size=distributed.get_world_size())


def _end() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()

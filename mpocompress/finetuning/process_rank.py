"""Rank of this process among those started together, as by torchrun; imports no torch."""

from __future__ import annotations

import os
import sys


def world_size() -> int:
    """Return the number of processes that the environment announces; 1 if it announces none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Return whether this process is the one that evaluates, writes files and prints.

    Example:
        >>> is_rank_zero()
        True
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return world_size() < 2 or int(os.environ.get("RANK", "0")) == 0

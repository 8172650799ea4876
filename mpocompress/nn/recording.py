"""Whether a run is recorded: for gradients, or by what exports and compiles."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def is_traced() -> bool:
    """Whether `torch.export`, `torch.compile` or `torch.jit.trace` records what is called.

    Nothing may then depend on memory or on time.

    Returns:
        Whether one does.
    """
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def needs_gradients(tensors: Iterable[Tensor]) -> bool:
    """Whether a run has to be recorded for gradients.

    Args:
        tensors: all that it depends on.

    Returns:
        Whether gradients are enabled and one of them wants its own.
    """
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

"""Whether calls of torch are traced or transformed, so that no tensor or memory of an earlier call may be used."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Return whether `torch.export`, `torch.compile` or `torch.jit.trace` records the calls.

    The recorded program must not depend on measured times or on memory.
    """
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def is_transformed() -> bool:
    """Return whether a transformation of `torch.func` is active; tensors have no memory of their own then."""
    return torch._C._are_functorch_transforms_active()


def is_recorded() -> bool:
    """Return whether calls are traced or transformed."""
    # Written out: layers ask at every call, and a small layer takes a few microseconds.
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )

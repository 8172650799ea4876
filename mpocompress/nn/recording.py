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
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def is_transformed() -> bool:
    """Whether a transformation of `torch.func` is at work: tensors have no memory of their own then.

    Returns:
        Whether one is.
    """
    return torch._C._are_functorch_transforms_active()


def is_recorded() -> bool:
    """Whether a tracer or a transformation is at work: nothing that was made before can then be used.

    Returns:
        Whether one is.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def needs_gradients(tensors: Iterable[Tensor]) -> bool:
    """Whether a run has to be recorded for gradients.

    Args:
        tensors: all that it depends on.

    Returns:
        Whether gradients are enabled and one of them wants its own.
    """
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def check_dtypes(tensors: Iterable[Tensor], wanted: torch.dtype) -> None:
    """Refuse tensors that the weights cannot be multiplied with.

    Args:
        tensors: inputs and states.
        wanted: dtype of the weights.

    Raises:
        RuntimeError: another dtype, outside of autocast; of the type that torch raises.
    """
    others = {str(tensor.dtype) for tensor in tensors if tensor.dtype != wanted}
    if others and not any(torch.is_autocast_enabled(tensor.device.type) for tensor in tensors):
        raise RuntimeError(
            f"expected input and states to have the dtype of the weights, {wanted}; got {', '.join(others)}"
        )

"""Whether a run is recorded: for gradients, or by what exports and compiles."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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


def needs_gradients(layer: nn.Module, *tensors: Tensor) -> bool:
    """Whether a run has to be recorded for gradients.

    Args:
        layer: what is run.
        tensors: what it is given.

    Returns:
        Whether gradients are enabled and one of these, or a parameter, wants its own.
    """
    if not torch.is_grad_enabled():
        return False
    return any(tensor.requires_grad for tensor in tensors) or any(one.requires_grad for one in layer.parameters())


def check_dtypes(tensors: Iterable[Tensor], wanted: torch.dtype) -> None:
    """Refuse tensors that the weights cannot be multiplied with.

    Args:
        tensors: inputs and states.
        wanted: dtype of the weights.

    Raises:
        RuntimeError: another dtype, outside of autocast; of the type that torch raises.
    """
    others = {_called(tensor.dtype) for tensor in tensors if tensor.dtype != wanted}
    if others and not any(torch.is_autocast_enabled(tensor.device.type) for tensor in tensors):
        found = ", ".join(sorted(others))
        raise RuntimeError(
            f"expected input, states and weights to have the same dtype, but got: {found} != {_called(wanted)}"
        )


def _called(dtype: torch.dtype) -> str:
    """A dtype by the name that torch has for it in such messages."""
    return torch.empty(0, dtype=dtype).type().removeprefix("torch.").removesuffix("Tensor")

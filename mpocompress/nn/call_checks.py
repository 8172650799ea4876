"""Checks at the start of a call of a layer: whether gradients are needed, and whether dtypes agree."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def needs_gradients(layer: nn.Module, *tensors: Tensor) -> bool:
    """Return whether a call has to be recorded for gradients.

    Args:
        layer: the layer.
        tensors: its arguments.
    """
    if not torch.is_grad_enabled():
        return False
    return any(tensor.requires_grad for tensor in tensors) or any(
        parameter.requires_grad for parameter in layer.parameters()
    )


def check_dtypes(tensors: Iterable[Tensor], weight_dtype: torch.dtype) -> None:
    """Raise torch's error if the dtype of an input or state is not that of the weights.

    Args:
        tensors: inputs and states.
        weight_dtype: dtype of the weights.

    Raises:
        RuntimeError: another dtype, unless autocast is enabled.
    """
    others = {_type_name(tensor.dtype) for tensor in tensors if tensor.dtype != weight_dtype}
    if others and not any(torch.is_autocast_enabled(tensor.device.type) for tensor in tensors):
        raise RuntimeError(
            "expected input, states and weights to have the same dtype, but got: "
            f"{', '.join(sorted(others))} != {_type_name(weight_dtype)}"
        )


def _type_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in torch's own messages, such as `Float`."""
    return torch.empty(0, dtype=dtype).type().removeprefix("torch.").removesuffix("Tensor")

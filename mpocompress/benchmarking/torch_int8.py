"""Weights of 8 bits by the dynamic quantization of torch: the usual way to a smaller and faster model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_QUANTIZED = "torch.ao.nn.quantized"
_REPLACED = {nn.LSTM, nn.LSTMCell, nn.Linear}


def why_not_int8(module: nn.Module) -> str:
    """Why torch has no weights of 8 bits for a module.

    Args:
        module: the module.

    Returns:
        The reason, in words; empty where it may have.

    Example:
        >>> why_not_int8(nn.Linear(2, 2).double())
        'torch quantizes float32 layers only'
    """
    parameters = list(module.parameters())
    if any(one.device.type != "cpu" for one in parameters):
        return "torch has it on processors only"
    if not any(engine != "none" for engine in torch.backends.quantized.supported_engines):
        return "this build of torch has no library for it"
    if any(one.dtype != torch.float32 for one in parameters):
        return "torch quantizes float32 layers only"
    lstms = [one for one in module.modules() if isinstance(one, nn.LSTM | nn.LSTMCell)]
    if any(getattr(one, "proj_size", 0) for one in lstms):
        return "torch has none for an LSTM with a projection"
    return "torch has none for an LSTM without bias" if any(not one.bias for one in lstms) else ""


class _Wrapped(nn.Module):
    """A module inside another, because only what is inside is replaced."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside


def int8_copy(module: nn.Module) -> nn.Module:
    """A copy of a module whose LSTM, LSTM cell and Linear layers have weights of 8 bits.

    Args:
        module: the module; it stays as it is.

    Returns:
        The copy, in evaluation mode; where torch found nothing to replace, an equal module.

    Raises:
        Exception: whatever torch raises where it cannot do it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it will move to another package one day
        wrapped = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            _Wrapped(copy.deepcopy(module).eval()), _REPLACED, dtype=torch.qint8
        )
    inside: nn.Module = wrapped.inside
    return inside


def has_int8_layers(module: nn.Module) -> bool:
    """Whether a module is, or has in it, a layer of torch with weights of 8 bits.

    Args:
        module: the module.

    Returns:
        Whether it has.

    Example:
        >>> has_int8_layers(int8_copy(nn.Linear(2, 2))), has_int8_layers(nn.Linear(2, 2))
        (True, False)
    """
    return any(map(_is_quantized, module.modules()))


def packed_bytes(module: nn.Module) -> int:
    """Bytes of the weights and biases that the layers with weights of 8 bits hold, in a form of their own.

    Args:
        module: the module.

    Returns:
        Bytes; 0 where there are no such layers.

    Example:
        >>> packed_bytes(int8_copy(nn.Linear(100, 10)))
        1040
    """
    layers = filter(_is_quantized, module.modules())
    return sum(one.numel() * one.element_size() for layer in layers for one in _packed(layer))


def _is_quantized(module: nn.Module) -> bool:
    """Whether a module is a layer with weights of 8 bits, not a part of one."""
    weights = hasattr(module, "get_weight") or callable(getattr(module, "weight", None))
    return weights and type(module).__module__.startswith(_QUANTIZED)


def _packed(layer: Any) -> Iterator[Tensor]:
    if hasattr(layer, "get_weight"):
        yield from (*layer.get_weight().values(), *layer.get_bias().values())
    else:
        yield from (one for one in (layer.weight(), layer.bias()) if one is not None)

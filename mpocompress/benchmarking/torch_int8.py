"""Dynamic int8 quantisation by torch, the usual way to a smaller and faster model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_QUANTIZED_PACKAGE = "torch.ao.nn.quantized"
_QUANTIZABLE = {nn.LSTM, nn.LSTMCell, nn.Linear}


def why_not_int8(module: nn.Module) -> str:
    """Return why torch cannot quantise a module dynamically; empty if no reason is known in advance.

    Args:
        module: the module.

    Example:
        >>> why_not_int8(nn.Linear(2, 2).double())
        'torch quantises only float32 layers'
    """
    parameters = list(module.parameters())
    if any(parameter.device.type != "cpu" for parameter in parameters):
        return "torch quantises only on the CPU"
    if not any(engine != "none" for engine in torch.backends.quantized.supported_engines):
        return "this build of torch has no quantisation engine"
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        return "torch quantises only float32 layers"
    lstms = [layer for layer in module.modules() if isinstance(layer, nn.LSTM | nn.LSTMCell)]
    if any(getattr(layer, "proj_size", 0) for layer in lstms):
        return "torch does not quantise an LSTM with a projection"
    return "torch does not quantise an LSTM without bias" if any(not layer.bias for layer in lstms) else ""


class _Wrapper(nn.Module):
    """A module that contains another, because torch replaces only the modules inside the given one."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside


def int8_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module in evaluation mode, its LSTM, LSTM cell and Linear layers quantised to int8.

    Args:
        module: the module; it is not changed.

    Raises:
        Exception: the error of torch if it cannot quantise the module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this will move to another package
        wrapped = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            _Wrapper(copy.deepcopy(module).eval()), _QUANTIZABLE, dtype=torch.qint8
        )
    inside: nn.Module = wrapped.inside
    return inside


def has_int8_layers(module: nn.Module) -> bool:
    """Return whether a module is, or contains, a quantised layer of torch.

    Args:
        module: the module.

    Example:
        >>> has_int8_layers(int8_copy(nn.Linear(2, 2))), has_int8_layers(nn.Linear(2, 2))
        (True, False)
    """
    return any(map(_is_quantized, module.modules()))


def packed_bytes(module: nn.Module) -> int:
    """Return the bytes of the packed weights and biases of all quantised layers in a module.

    Args:
        module: the module.

    Example:
        >>> packed_bytes(int8_copy(nn.Linear(100, 10)))
        1040
    """
    layers = filter(_is_quantized, module.modules())
    return sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in _packed(layer))


def _is_quantized(module: nn.Module) -> bool:
    """Return whether a module is a quantised layer, and not a part of one."""
    has_weight = hasattr(module, "get_weight") or callable(getattr(module, "weight", None))
    return has_weight and type(module).__module__.startswith(_QUANTIZED_PACKAGE)


def _packed(layer: Any) -> Iterator[Tensor]:
    if hasattr(layer, "get_weight"):
        yield from (*layer.get_weight().values(), *layer.get_bias().values())
    else:
        yield from (tensor for tensor in (layer.weight(), layer.bias()) if tensor is not None)

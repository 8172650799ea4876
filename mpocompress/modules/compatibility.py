"""Which MPO layer can replace a module, and which modules cannot be replaced."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mpocompress.errors import ModelError
from mpocompress.layers.kinds import class_kind, full_name
from mpocompress.modules.name_matching import Match, described
from mpocompress.text import shown

Replaceable = Literal["linear", "conv1d", "lstm", "lstm_cell", "parameter"]
"""What is replaced: a whole layer of one of these kinds, or, in any other module, only the parameter."""

_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
"""Wrappers that keep lists of the parameters of a model, so that the parameters can no longer be replaced."""


def check_changeable(model: nn.Module) -> None:
    """Refuse a model whose parameters cannot be replaced.

    Args:
        model: the model.

    Raises:
        ModelError: it is wrapped for training on several devices, or is on the meta device.
    """
    for path, module in model.named_modules():
        wrapper = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS), None)
        if wrapper is not None:
            raise model_error(
                path, f"a {wrapper}", "it keeps a list of the parameters of the model", "Wrap the model after this."
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise model_error(
                name,
                "a tensor without data (device meta)",
                "there is no device for the new weights",
                "Allocate the model first, for example with model.to_empty(device='cpu').",
            )


def replaceable(module: nn.Module, path: str) -> Replaceable:
    """Return what is replaced if one of the weights of a module is compressed.

    Args:
        module: the module.
        path: its path, for messages.

    Returns:
        The kind of layer; `parameter` for a module with a forward of its own.

    Raises:
        ModelError: its weights cannot be cores, or it has hooks that would be lost.

    Example:
        >>> replaceable(nn.LSTM(2, 3), "lstm"), replaceable(nn.Bilinear(2, 2, 3), "mix")
        ('lstm', 'parameter')
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise model_error(
            path, "a TorchScript module", "its parameters cannot be replaced", "Script the model after this."
        )
    kind: Replaceable = "parameter"
    if isinstance(module, nn.Linear) and _is_plain(module, nn.Linear, {"weight", "bias"}):
        kind = "linear"
    elif class_kind(full_name(type(module))) == "conv1d" and "forward" not in vars(module):
        kind = "conv1d"
    elif isinstance(module, nn.LSTMCell) and _is_plain(
        module, nn.LSTMCell, {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    ):
        kind = "lstm_cell"
    elif isinstance(module, nn.LSTM):
        if not _is_plain(module, nn.LSTM, set(module._flat_weights_names)):
            raise model_error(
                path,
                f"{described(module)}, an nn.LSTM with its own forward or its own tensors",
                "an MPO layer would not run them, and the kernel of nn.LSTM does not take cores",
                "Replace it by a plain nn.LSTM, or exclude the layer when compressing.",
            )
        kind = "lstm"
    elif isinstance(module, nn.RNNBase):
        raise model_error(
            path,
            described(module),
            "the file has cores for an nn.LSTM here, which no other recurrent layer takes",
            "Pass the model that was compressed, or exclude the layer when compressing.",
        )
    if kind != "parameter":
        _check_hooks(module, path)
    return kind


def check_replaceable(match: Match) -> None:
    """Refuse a weight that cores cannot replace.

    Args:
        match: the weight.

    Raises:
        ModelError: see `replaceable`.
    """
    replaceable(match.ref.module, match.ref.module_path)


def _is_plain(module: nn.Module, kind: type[nn.Module], parameters: set[str]) -> bool:
    """Return whether a module of a class or a subclass runs as the class does, on nothing but its parameters."""
    own = set(module._parameters) - parameters or module._buffers or module._modules
    return type(module).forward is kind.forward and "forward" not in vars(module) and not own


def _check_hooks(module: nn.Module, path: str) -> None:
    lazy = {vars(module)[name].id for name in ("_initialize_hook", "_load_hook") if name in vars(module)}
    if {number for name in _HOOKS for number in getattr(module, name)} - lazy:
        raise model_error(
            path,
            f"{described(module)} with hooks",
            "they would be lost when the layer is replaced",
            "Register them on the new layer after loading.",
        )


def model_error(where: str, found: str, why: str, action: str) -> ModelError:
    """Return the error for a part of a model that cannot be changed.

    Args:
        where: path of the module or tensor; empty for the model itself.
        found: what was found there.
        why: why the work cannot go on.
        action: what to do next.

    Example:
        >>> print(model_error("", "a DataParallel", "it has copies", "Wrap it later."))
        the model: a DataParallel; it has copies. Wrap it later.
    """
    return ModelError(where=shown(where) or "the model", found=found, why=why, action=action)

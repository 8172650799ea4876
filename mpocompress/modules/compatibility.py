"""What a module is to the swap for an MPO layer; what cannot be swapped, and why."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from mpocompress.errors import ModelError
from mpocompress.layers.kinds import class_kind, full_name
from mpocompress.modules.name_matching import Placed, described
from mpocompress.text import shown

Form = Literal["linear", "conv1d", "lstm", "lstm_cell", "parameter"]
"""What a module is to the swap; of one that is none of these layers, only the parameter is replaced."""

_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")
"""They keep lists of the parameters of a model, so that parameters cannot be replaced any more."""


def check_changeable(model: nn.Module) -> None:
    """Refuse a model whose parameters cannot be replaced, whatever is loaded into it.

    Args:
        model: the model.

    Raises:
        ModelError: it is wrapped for training on several devices, or has no data.
    """
    for path, module in model.named_modules():
        wrapper = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS), None)
        if wrapper is not None:
            raise refused(
                path, f"a {wrapper}", "it knows the parameters it was made with", "Wrap the model after this."
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise refused(
                name,
                "a tensor without data (device meta)",
                "there is no device to put weights on",
                "Give the model memory first, for example with model.to_empty(device='cpu').",
            )


def form_of(module: nn.Module, path: str) -> Form:
    """What a module is to the swap.

    Args:
        module: a module one of whose weights is to be replaced by cores.
        path: where it is, for messages.

    Returns:
        The layer it is; `parameter` for one that runs in its own way.

    Raises:
        ModelError: it can have no cores, or has hooks that would be lost.

    Example:
        >>> form_of(nn.LSTM(2, 3), "lstm"), form_of(nn.Bilinear(2, 2, 3), "mix")
        ('lstm', 'parameter')
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise refused(path, "a TorchScript module", "its parameters cannot be replaced", "Script the model after this.")
    form: Form = "parameter"
    if isinstance(module, nn.Linear) and _is_plain(module, nn.Linear, {"weight", "bias"}):
        form = "linear"
    elif class_kind(full_name(type(module))) == "conv1d" and "forward" not in vars(module):
        form = "conv1d"
    elif isinstance(module, nn.LSTMCell) and _is_plain(
        module, nn.LSTMCell, {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    ):
        form = "lstm_cell"
    elif isinstance(module, nn.LSTM):
        if not _is_plain(module, nn.LSTM, set(module._flat_weights_names)):
            raise refused(
                path,
                f"{described(module)}, an nn.LSTM with a forward or with tensors of its own",
                "an MPO layer would not run them, and the kernel of nn.LSTM takes no cores",
                "Put a plain nn.LSTM in its place, or leave the layer out when compressing.",
            )
        form = "lstm"
    elif isinstance(module, nn.RNNBase):
        raise refused(
            path,
            described(module),
            "the file has cores for an nn.LSTM there, and no other recurrent layer takes them",
            "Give the model that was compressed, or leave the layer out when compressing.",
        )
    if form != "parameter":
        _check_hooks(module, path)
    return form


def check_form(placed: Placed) -> None:
    """Refuse a weight that its module cannot have as cores.

    Args:
        placed: the weight.

    Raises:
        ModelError: as `form_of` says.
    """
    form_of(placed.slot.module, placed.slot.name.rpartition(".")[0])


def _is_plain(module: nn.Module, kind: type[nn.Module], parameters: set[str]) -> bool:
    """Whether a module of a class or a subclass runs as the class does, on nothing but its parameters."""
    own = set(module._parameters) - parameters or module._buffers or module._modules
    return type(module).forward is kind.forward and "forward" not in vars(module) and not own


def _check_hooks(module: nn.Module, path: str) -> None:
    lazy = {vars(module)[name].id for name in ("_initialize_hook", "_load_hook") if name in vars(module)}
    if {number for name in _HOOKS for number in getattr(module, name)} - lazy:
        raise refused(
            path,
            f"{described(module)} with hooks on it",
            "they would be lost with the layer that is replaced",
            "Register them after loading, on the new layer.",
        )


def refused(where: str, found: str, why: str, action: str) -> ModelError:
    """The error for a part of a model that cannot be changed.

    Args:
        where: path of the module or tensor; empty for the model itself.
        found: what is there.
        why: why that stops the work.
        action: what to do next.

    Returns:
        The error, to be raised.

    Example:
        >>> print(refused("", "a DataParallel", "it has copies", "Wrap it later."))
        the model: a DataParallel; it has copies. Wrap it later.
    """
    return ModelError(where=shown(where) or "the model", found=found, why=why, action=action)

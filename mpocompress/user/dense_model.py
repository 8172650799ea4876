"""A private copy of the user's model, and the weights of a dense checkpoint loaded into it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import ModelError
from mpocompress.text import listed, shown
from mpocompress.user.name_alignment import align_names


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Args:
        model: the model; it is not changed.

    Raises:
        ModelError: it cannot be copied.
    """
    try:
        with torch.no_grad():  # otherwise parameters of a scripted module would have a history
            return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            where=type(model).__name__,
            found=f"copying the model failed ({shown(f'{type(error).__name__}: {error}')})",
            why="a copy is run, so that the given model does not change",
            action="Give a function that builds the model instead, as file.py:name.",
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter of a model; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Load a checkpoint into a model, even if one of them has a prefix before its names.

    Args:
        model: the model; its tensors are overwritten.
        checkpoint: the weights, open.

    Returns:
        Name of a floating-point tensor in the checkpoint -> its names in the model.

    Raises:
        ModelError: the model has a tensor that the checkpoint lacks, or they have none in common.
    """
    state = model.state_dict(keep_vars=True)
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    infos = checkpoint.tensors
    pairs = align_names(infos, tensors, lambda name, target: infos[name].shape == tuple(tensors[target].shape))
    targets: dict[str, list[str]] = {}
    loaded: set[int] = set()
    with torch.no_grad():
        for name, target in pairs.items():
            source = infos[name].alias_of or name
            if id(tensors[target]) not in loaded:
                tensors[target].copy_(checkpoint.tensor(source))
            loaded.add(id(tensors[target]))
            targets.setdefault(source, []).append(target)
    missing = [name for name, tensor in tensors.items() if id(tensor) not in loaded]
    if missing or not pairs:
        raise ModelError(
            where=type(model).__name__,
            found=f"{listed(missing) or 'no tensor'}, which the checkpoint does not have in that shape",
            why="the model has to run as it did when it was saved",
            action="Give the model from which the checkpoint was saved.",
        )
    return {
        source: floating
        for source, names in targets.items()
        if (floating := [name for name in names if tensors[name].is_floating_point()])
    }

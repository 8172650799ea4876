"""The user's own model with the weights of a dense checkpoint."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import ModelError
from mpocompress.text import listed, shown
from mpocompress.user.name_alignment import aligned

_MOST_SHOWN = 3


def copied(model: nn.Module) -> nn.Module:
    """A private copy of a model.

    Args:
        model: the model; it stays as it is.

    Returns:
        The copy.

    Raises:
        ModelError: it cannot be copied.
    """
    try:
        with torch.no_grad():  # parameters of a scripted module would have a history
            return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            where=type(model).__name__,
            found=f"copying it failed ({shown(f'{type(error).__name__}: {error}')})",
            why="the given model is left as it is, and a copy is run",
            action="Give what builds the model instead, as file.py:name.",
        ) from error


def fill(model: nn.Module, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Load a checkpoint into a model, whatever prefixes either has.

    Args:
        model: written to.
        checkpoint: the weights, open.

    Returns:
        Name of a floating tensor in the checkpoint -> the names that its values have in the model.

    Raises:
        ModelError: it has a tensor that the checkpoint lacks, or none in common with it.
    """
    own = model.state_dict(keep_vars=True)
    tensors = {name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    infos = checkpoint.tensors
    found = aligned(infos, tensors, lambda name, other: infos[name].shape == tuple(tensors[other].shape))
    places: dict[str, list[str]] = {}
    filled: set[int] = set()
    with torch.no_grad():
        for name, other in found.items():
            source = infos[name].alias_of or name
            if id(tensors[other]) not in filled:
                tensors[other].copy_(checkpoint.tensor(source))
            filled.add(id(tensors[other]))
            places.setdefault(source, []).append(other)
    missing = [name for name, tensor in tensors.items() if id(tensor) not in filled]
    if missing or not found:
        raise ModelError(
            where=type(model).__name__,
            found=f"{listed(missing, _MOST_SHOWN) or 'no tensor'}, which the checkpoint does not have in that shape",
            why="the model has to run as it was when it was saved",
            action="Give the model that the checkpoint was saved from.",
        )
    return {
        name: there
        for name, others in places.items()
        if (there := [other for other in others if tensors[other].is_floating_point()])
    }

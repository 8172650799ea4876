"""How a model is called with what the user made for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def fed(model: nn.Module, made: object) -> object:
    """Call a model with what was made for it.

    Args:
        model: the model.
        made: a tensor or packed sequences, a tuple of arguments, or a mapping of named ones.

    Returns:
        What the model returns.
    """
    if isinstance(made, Mapping):
        return model(**made)
    return model(*made) if isinstance(made, tuple) and not isinstance(made, PackedSequence) else model(made)


def moved(value: Any, device: str) -> Any:
    """A copy of a nest of tensors on a device, so that a model that writes into its inputs spoils none.

    Args:
        value: tensors, packed sequences, tuples, lists and mappings of them; all else stays as it is.
        device: where to.

    Returns:
        The same nest, its tensors copied.
    """
    if isinstance(value, Mapping):
        return {name: moved(one, device) for name, one in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(moved(one, device) for one in value)
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    there = value.to(device) if hasattr(value, "to") else value
    return there._replace(data=moved(there.data, device)) if isinstance(there, PackedSequence) else there


def sample_count(made: object) -> int:
    """How many samples a batch holds: the first dim of its first tensor, or the sequences packed in it.

    Args:
        made: what the model is called with.

    Returns:
        The number; 1 where there is no tensor to tell by.

    Example:
        >>> import torch
        >>> sample_count({"ids": torch.zeros(4, 7)}), sample_count("text")
        (4, 1)
    """
    if isinstance(made, PackedSequence):
        return int(made.batch_sizes[0])
    if isinstance(made, Tensor):
        return len(made) if made.dim() else 1
    parts = made.values() if isinstance(made, Mapping) else made if isinstance(made, tuple | list) else ()
    return next((sample_count(one) for one in parts if isinstance(one, Tensor | PackedSequence)), 1)

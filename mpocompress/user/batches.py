"""Batches: how a model is called with one, its device and its number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpocompress.user.pytree import map_leaves


def call_model(model: nn.Module, inputs: object) -> object:
    """Call a model with the inputs of a batch.

    Args:
        model: the model.
        inputs: a tuple of arguments, a mapping of named ones, or a single argument of any other type.

    Returns:
        The outputs of the model.
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence) else model(inputs)


def to_device(tree: object, device: str) -> Any:
    """Copy a tree of tensors to a device, so that a model that writes to its inputs leaves the original unchanged.

    Args:
        tree: tensors and packed sequences in lists, tuples, mappings and registered types; see `user.pytree`.
        device: the device.

    Returns:
        The same tree. Every tensor is copied, other values that have a method `to` are moved, and the rest is shared.
    """

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, copy=True)
        there = leaf.to(device) if hasattr(leaf, "to") else leaf
        return there._replace(data=there.data.clone()) if isinstance(there, PackedSequence) else there

    return map_leaves(moved, tree)


def sample_count(inputs: object) -> int:
    """Return the number of samples in a batch: the first dim of its first tensor, or the number of packed sequences.

    Args:
        inputs: as for `call_model`; of a tuple, list or mapping, only its own elements are considered.

    Returns:
        The number; 1 if there is no tensor.

    Example:
        >>> import torch
        >>> sample_count({"ids": torch.zeros(4, 7)}), sample_count("text")
        (4, 1)
    """
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes[0])
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.dim() else 1
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else ()
    return next((sample_count(part) for part in parts if isinstance(part, Tensor | PackedSequence)), 1)

"""Batches: read from the user's data, with a target or without, and how a model is called with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpocompress.errors import MPOCompressError
from mpocompress.user.pytree import map_leaves
from mpocompress.user.randomness import Randomness

Passes = Callable[[int | None], Iterator[object]]
"""Starts a pass over the data; the number seeds the random numbers drawn in it. None: the global generators."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One batch.

    Args:
        inputs: what the model is called with; see `call_model`.
        target: the desired output; None if it is not known.
    """

    inputs: object
    target: object | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sample_count(self.inputs)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to a device."""
        return Batch(inputs=to_device(self.inputs, str(device)), target=to_device(self.target, str(device)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFormat:
    """What a command accepts as the user's batches.

    Args:
        name: what the batches are called in errors, such as `training data`.
        error: the error to raise.
        action: what the error advises.
        load: imports batches given as `file.py:name`.
        targets: `none`: a batch is the inputs of the model. `required`: a batch is a pair of inputs and a target.
            `optional`: a tuple or list of two is such a pair, one of any other length is the arguments of the model.
        accepts_functions: whether the batches may be a function that returns an iterable and is called for every pass.
    """

    name: str
    error: type[MPOCompressError]
    action: str
    load: Callable[[str], Passes]
    targets: Literal["none", "required", "optional"]
    accepts_functions: bool

    def refusal(self, found: str, why: str) -> MPOCompressError:
        """Return the error for data that are not accepted."""
        return self.error(where=self.name, found=found, why=why, action=self.action)


def passes_over(data: object, accepted: BatchFormat) -> Passes:
    """Return a function that starts a pass over the user's data.

    Args:
        data: an iterable of batches, a function that returns one if these are accepted, or `file.py:name` or
            `package.module:name` of either, which is imported and run. An iterator lasts for one pass.
        accepted: what is accepted.

    Raises:
        MPOCompressError: of the kind that `accepted` names, if the data are none of these or cannot be imported.
    """
    if isinstance(data, str):
        return accepted.load(data)
    is_function = accepted.accepts_functions and callable(data) and not isinstance(data, Iterable)
    if isinstance(data, Tensor | Mapping) or not (is_function or isinstance(data, Iterable)):
        raise accepted.refusal(f"a {type(data).__name__}", "an iterable of batches is needed")

    def one_pass(seed: int | None) -> Iterator[object]:
        batches: Any = data
        if seed is None:
            yield from batches() if is_function else batches
            return
        randomness, end = Randomness(seed), object()
        with randomness.drawing():
            iterator: Iterator[object] = iter(batches() if is_function else batches)
        while True:
            with randomness.drawing():
                batch = next(iterator, end)
            if batch is end:
                return
            yield batch

    return one_pass


def parse_batch(batch: object, accepted: BatchFormat) -> Batch:
    """Split a batch of the user into the inputs of the model and a target.

    Args:
        batch: a tensor, packed sequences, a mapping of named arguments, or a tuple or list.
        accepted: which tuples and lists are a pair of inputs and a target.

    Raises:
        MPOCompressError: of the kind that `accepted` names, if a model cannot be called with the batch.
    """
    inputs, target = batch, None
    if accepted.targets != "none" and isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
    elif accepted.targets == "required":
        raise accepted.refusal(
            f"a {type(batch).__name__}", "with a loss, every batch is a pair of the model's inputs and a target"
        )
    is_list = accepted.targets == "optional" and isinstance(inputs, list)
    is_empty = isinstance(inputs, tuple | list) and not inputs
    if is_empty or not (is_list or isinstance(inputs, Tensor | tuple | Mapping)):
        raise accepted.refusal(
            f"a {type(inputs).__name__}",
            "a model is called with a tensor, a tuple of arguments, or a mapping of named arguments",
        )
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    return Batch(inputs=inputs, target=target)


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

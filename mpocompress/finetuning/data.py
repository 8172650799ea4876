"""Training data: the user's batches, pass after pass, without those that are held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from mpocompress.errors import FinetuneError
from mpocompress.reports.json_documents import Count
from mpocompress.user.batches import Batch, BatchFormat, parse_batch, passes_over
from mpocompress.user.code import data_passes
from mpocompress.user.pytree import map_leaves, tensors
from mpocompress.user.randomness import Stream, stream_seed

READ_AHEAD_BATCHES, READ_AHEAD_SAMPLES, READ_AHEAD_BYTES = 32, 2048, 2**28
"""Batches are read ahead, to hold some of them out, until one of these limits is reached."""
TRAINING_BATCHES_PER_HELD_OUT = 8
"""One batch in this many is held out; at least this many are read ahead."""

TRAINING_DATA = BatchFormat(
    name="training data",
    error=FinetuneError,
    action="Give an iterable of inputs of the model (tensors, tuples of arguments, or mappings of named arguments), or "
    "of pairs of inputs and a target.",
    load=data_passes,
    targets="optional",
    accepts_functions=True,
)
HELD_OUT_DATA = replace(TRAINING_DATA, name="held-out data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A position in the training data.

    Args:
        number: number of the pass, from 0.
        taken: batches taken from that pass, including held-out ones.
    """

    number: Count = 0
    taken: Count = 0


class TrainingData:
    """The batches to train on, in order, and those that are held out.

    Args:
        data: an iterable of batches, a function that returns one, or `file.py:name` or `package.module:name` of either.
        held_out: batches to evaluate on, in the same forms; None to hold out some of the data.
        seed: seed of the random numbers that the data draw in every pass.
        consecutive: whether batches are consecutive pieces of the same texts; then the first ones are held out.

    Raises:
        FinetuneError: there are no batches, or a model cannot be called with one.
    """

    def __init__(self, data: object, *, held_out: object | None, seed: int, consecutive: bool) -> None:
        self._passes = passes_over(data, TRAINING_DATA)
        self._seed = seed
        self._first_pass = self._pass(0)
        self._ahead = self._read_ahead(READ_AHEAD_BATCHES if held_out is None else 1)
        self._places: frozenset[int] = frozenset()
        self.is_reshuffled = False
        """Whether a later pass had other batches at the places of those that are held out."""
        self.is_held_out = True
        """Whether the held-out batches are not trained on."""
        if held_out is not None:
            passes = passes_over(held_out, HELD_OUT_DATA)
            self.held_out = tuple(parse_batch(_copied(batch), HELD_OUT_DATA) for batch in passes(seed))
            if not self.held_out:
                raise HELD_OUT_DATA.refusal("no batch", "there is nothing to evaluate on")
            return
        count, every = len(self._ahead), TRAINING_BATCHES_PER_HELD_OUT
        if count == 1:
            self.is_held_out = False
            self.held_out = (parse_batch(self._ahead[0], TRAINING_DATA),)
            return
        spread = range(every - 1, count, every) if count >= every else [count - 1]
        self._places = frozenset(range(max(1, count // every)) if consecutive else spread)
        self.held_out = tuple(parse_batch(self._ahead[place], TRAINING_DATA) for place in sorted(self._places))

    @property
    def first(self) -> Batch:
        """The first batch to train on."""
        batch = next(batch for place, batch in enumerate(self._ahead) if place not in self._places)
        return parse_batch(batch, TRAINING_DATA)

    def batches(self, start: Position = Position()) -> Iterator[tuple[Position, Batch]]:
        """Yield the batches to train on, until a pass has none.

        Args:
            start: position to start from.

        Yields:
            The position after the batch, and the batch.

        Raises:
            FinetuneError: a model cannot be called with a batch.
        """
        for number in itertools.count(start.number):
            is_empty = True
            source = itertools.chain(self._ahead, self._first_pass) if number == 0 else self._pass(number)
            for place, batch in enumerate(source):
                if place in self._places:
                    self.is_reshuffled |= number > 0 and not _is_alike(batch, self._ahead[place])
                elif number > start.number or place >= start.taken:
                    is_empty = False
                    yield Position(number=number, taken=place + 1), parse_batch(batch, TRAINING_DATA)
            if is_empty and number > start.number:
                return

    def _read_ahead(self, most: int) -> list[object]:
        ahead: list[object] = []
        samples = size_bytes = 0
        for batch in itertools.islice(self._first_pass, most):
            ahead.append(batch)
            samples += parse_batch(batch, TRAINING_DATA).samples
            size_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors(batch))
            is_enough = samples >= READ_AHEAD_SAMPLES or size_bytes >= READ_AHEAD_BYTES
            if is_enough and len(ahead) >= TRAINING_BATCHES_PER_HELD_OUT:
                break
        if not ahead:
            raise TRAINING_DATA.refusal("no batch", "there is nothing to train on")
        return ahead

    def _pass(self, number: int) -> Iterator[object]:
        return map(_copied, self._passes(stream_seed(self._seed, Stream.DATA, number)))


def _copied(batch: object) -> object:
    """Copy a batch: data may reuse the same tensors for every batch, and several batches are kept at a time."""
    return map_leaves(_clone, batch)


def _clone(leaf: Any) -> Any:
    if isinstance(leaf, PackedSequence):
        return leaf._replace(data=leaf.data.clone())
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _is_alike(batch: object, other: object) -> bool:
    """Return whether the first tensors of two batches are equal."""
    first, second = (next(tensors(tree), None) for tree in (batch, other))
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and torch.equal(first, second)

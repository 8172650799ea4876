"""What is trained on: the user's batches, pass after pass, and those that are held out of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from mpocompress.errors import FinetuneError
from mpocompress.user.batches import sample_count, to_device
from mpocompress.user.code import data_passes
from mpocompress.user.randomness import Randomness, Stream, stream_seed

AHEAD_BATCHES, AHEAD_SAMPLES = 32, 2048
AHEAD_BYTES = 2**28
"""So much is read ahead to hold a part of it out, whichever is reached first; but one batch can be held out of it."""
HELD_OUT_EVERY = 8
"""One batch in so many of those is held out."""

Passes = Callable[[int | None], Iterator[object]]
"""Goes through the data anew; the number is a seed to draw with."""

_WRITE_ONE = (
    "Give an iterable of what the model is called with (tensors, tuples of arguments, or dicts of named ones), or of "
    "pairs of that and a target."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One batch.

    Args:
        inputs: what the model is called with.
        target: what it should put out; None where that is not known.
    """

    inputs: object
    target: object | None = None

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return sample_count(self.inputs)

    def on(self, device: torch.device) -> Example:
        """The same batch on a device.

        Args:
            device: the device.
        """
        return Example(inputs=to_device(self.inputs, str(device)), target=to_device(self.target, str(device)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place in the data.

    Args:
        number: of the pass, from 0 on.
        taken: batches taken from that pass, held-out ones included.
    """

    number: int = 0
    taken: int = 0


def example(batch: object) -> Example:
    """Tell inputs from a target.

    Args:
        batch: a tensor, packed sequences, a mapping of named arguments, or a tuple or list: of two, inputs and target;
            of any other number, the arguments of the model.

    Returns:
        The two.

    Raises:
        FinetuneError: it is none of these.

    Example:
        >>> found = example((torch.zeros(4, 3), torch.zeros(4)))
        >>> found.samples, found.target.shape
        (4, torch.Size([4]))
    """
    if isinstance(batch, Tensor | PackedSequence | Mapping):
        return Example(inputs=batch)
    if not isinstance(batch, tuple | list) or not batch:
        raise _odd(batch)
    if len(batch) != 2:
        return Example(inputs=tuple(batch))
    inputs, target = batch
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    if not isinstance(inputs, Tensor | tuple | Mapping):
        raise _odd(inputs)
    return Example(inputs=inputs, target=target)


def passes_over(data: object) -> Passes:
    """A way to go through the user's data as often as is wanted.

    Args:
        data: an iterable, a function without arguments that gives one and is called for every pass, or `file.py:name`
            or `package.module:name` of either. An iterator can be gone through once only.

    Returns:
        A function of a seed; what the data draw in a pass, they draw from that.

    Raises:
        FinetuneError: it is none of these, or cannot be imported.
    """
    if isinstance(data, str):
        return data_passes(data)
    if isinstance(data, Tensor | Mapping) or not (callable(data) or isinstance(data, Iterable)):
        raise FinetuneError(
            where="training data",
            found=f"a {type(data).__name__}",
            why="several batches are taken from it, one after another",
            action=_WRITE_ONE,
        )

    def one_pass(seed: int | None) -> Iterator[object]:
        draws, end = Randomness(seed), object()
        with draws.drawing():
            found = data() if callable(data) and not isinstance(data, Iterable) else data
            iterator: Iterator[object] = iter(found)
        while True:
            with draws.drawing():
                batch = next(iterator, end)
            if batch is end:
                return
            yield batch

    return one_pass


class Feed:
    """The batches to train on, in order, without those that are held out.

    Args:
        data: as `passes_over` takes it.
        held_out: batches to measure on, in the same forms; None to take some of the data.
        seed: every pass draws from it and the number of the pass.
        consecutive: whether batches belong one after the other; those held out are the first ones then.

    Raises:
        FinetuneError: there are none, or of a form that no model is called with.
    """

    def __init__(self, data: object, *, held_out: object | None, seed: int, consecutive: bool) -> None:
        self._passes = passes_over(data)
        self._seed = seed
        self._first = self._pass(0)
        self._ahead: list[object] = []
        samples = size = 0
        for batch in itertools.islice(self._first, AHEAD_BATCHES if held_out is None else 1):
            self._ahead.append(batch)
            samples += example(batch).samples
            size += sum(one.numel() * one.element_size() for one in _tensors(batch))
            is_enough = samples >= AHEAD_SAMPLES or size >= AHEAD_BYTES
            if is_enough and len(self._ahead) >= HELD_OUT_EVERY:
                break
        if not self._ahead:
            raise FinetuneError(
                where="training data", found="no batch", why="there is nothing to train on", action=_WRITE_ONE
            )
        self._places: frozenset[int] = frozenset()
        self.is_reshuffled = False
        self.is_held_out = True
        if held_out is not None:
            self.held_out = tuple(example(_copied(batch)) for batch in passes_over(held_out)(seed))
            if not self.held_out:
                raise FinetuneError(
                    where="held-out data", found="no batch", why="there is nothing to measure on", action=_WRITE_ONE
                )
            return
        count = len(self._ahead)
        if count == 1:
            self.is_held_out = False
            self.held_out = (example(self._ahead[0]),)
            return
        wanted = max(1, count // HELD_OUT_EVERY)
        every = range(HELD_OUT_EVERY - 1, count, HELD_OUT_EVERY) if count >= HELD_OUT_EVERY else [count - 1]
        self._places = frozenset(range(wanted) if consecutive else every)
        self.held_out = tuple(example(self._ahead[place]) for place in sorted(self._places))

    @property
    def first(self) -> Example:
        """The first batch that is trained on."""
        return example(next(batch for place, batch in enumerate(self._ahead) if place not in self._places))

    def batches(self, start: Position = Position()) -> Iterator[tuple[Position, Example]]:
        """The batches from a place on, until a pass gives none any more.

        Args:
            start: where to go on.

        Yields:
            Every batch, behind the place after it. The number of the pass changes where a new one begins.

        Raises:
            FinetuneError: a batch of a form that no model is called with.
        """
        for number in itertools.count(start.number):
            given = False
            source = itertools.chain(self._ahead, self._first) if number == 0 else self._pass(number)
            for place, batch in enumerate(source):
                if place in self._places:
                    self.is_reshuffled |= number > 0 and not _alike(batch, self._ahead[place])
                elif number > start.number or place >= start.taken:
                    given = True
                    yield Position(number=number, taken=place + 1), example(batch)
            if not given and number > start.number:
                return

    def _pass(self, number: int) -> Iterator[object]:
        return map(_copied, self._passes(stream_seed(self._seed, Stream.DATA, number)))


def _copied(value: Any) -> Any:
    """A batch of its own: data may fill the same tensors again, and several batches are held at a time."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.clone())
    if isinstance(value, Mapping):
        return {name: _copied(one) for name, one in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map(_copied, value))
    return value


def _alike(one: object, other: object) -> bool:
    """Whether two batches hold the same first tensor."""
    first, second = (next(_tensors(batch), None) for batch in (one, other))
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and torch.equal(first, second)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one)


def _odd(batch: object) -> FinetuneError:
    return FinetuneError(
        where="training data",
        found=f"a {type(batch).__name__}",
        why="a model is called with a tensor, a tuple of arguments, or a dict of named ones",
        action=_WRITE_ONE,
    )

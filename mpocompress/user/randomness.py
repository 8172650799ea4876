"""Reproducible random numbers for code that draws from the global generators, without changing them for other code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch

LARGEST_SEED = 2**32 - 1
"""The largest seed that numpy accepts."""


@unique
class Stream(IntEnum):
    """Independent streams of random numbers that a run derives from its seed, one for each purpose."""

    DATA = 0
    """The user's data in one pass, by the number of the pass."""
    TRAINING = 1
    """The model in a training step, by the step and the part of the batch."""
    EVALUATION = 2
    """Models on held-out batches."""
    SCORE = 3
    """The user's score."""
    GENERATION = 4
    """Batches that the teacher generates, by the number of the pass."""


class Randomness:
    """A state of the global generators of torch, numpy and Python, kept apart from the state that other code sees.

    Args:
        seed: initial seed; None for the current state of the global generators.

    Example:
        >>> first, second = Randomness(3), Randomness(3)
        >>> with first.drawing():
        ...     a = float(torch.rand(()))
        >>> with first.drawing():
        ...     b = float(torch.rand(()))
        >>> with second.drawing():
        ...     both = float(torch.rand(())), float(torch.rand(()))
        >>> both == (a, b), a == b
        (True, False)
    """

    def __init__(self, seed: int | None = None) -> None:
        self._state = _state() if seed is None else None
        self._seed = seed

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this state in the block, and restore the global generators after it."""
        before = _state()
        if self._state is not None:
            _restore(self._state)
        elif self._seed is not None:
            _begin(self._seed % (LARGEST_SEED + 1))
        try:
            yield
        finally:
            self._state = _state()
            _restore(before)


def stream_seed(seed: int, stream: Stream, *numbers: int) -> int:
    """Derive the seed of a stream, distinct for every combination of arguments as far as 32 bits allow.

    Args:
        seed: seed of the run, not negative.
        stream: the purpose of the random numbers.
        numbers: position in the stream, such as a step; not negative.

    Returns:
        The seed.

    Example:
        >>> stream_seed(0, Stream.TRAINING, 2) == stream_seed(0, Stream.DATA, 2)
        False
    """
    return int(np.random.SeedSequence((seed, int(stream), *numbers)).generate_state(1)[0])


def _begin(seed: int) -> None:
    """Seed the generators in use; `torch.manual_seed` also registers devices not yet initialised, which is slower."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the user's code draws from the global generator
    random.seed(seed)


def _state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(state: tuple[Any, ...]) -> None:
    cpu, cuda, numpy_state, python_state = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)

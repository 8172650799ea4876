"""Random numbers of one's own: code that draws from the global generators repeats itself, and disturbs no other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

LARGEST_SEED = 2**32 - 1
"""What numpy takes."""


class Randomness:
    """The state of the global generators of torch, numpy and Python, apart from the one that all other code sees.

    Args:
        seed: where it begins; None for where the global generators are now.

    Example:
        >>> one, other = Randomness(3), Randomness(3)
        >>> with one.drawing():
        ...     first = float(torch.rand(()))
        >>> with one.drawing():
        ...     second = float(torch.rand(()))
        >>> with other.drawing():
        ...     again = float(torch.rand(())), float(torch.rand(()))
        >>> again == (first, second), first == second
        (True, False)
    """

    def __init__(self, seed: int | None = None) -> None:
        self._state = _state() if seed is None else None
        self._seed = seed

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let what runs in the block draw from here; afterwards the global generators are as they were."""
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


def mixed(*numbers: int) -> int:
    """One seed from several numbers, different for each of their combinations as far as 32 bits go.

    Args:
        numbers: integers, not negative.

    Returns:
        The seed.

    Example:
        >>> mixed(0, 1) == mixed(1, 0)
        False
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _begin(seed: int) -> None:
    """Seed what is there; `torch.manual_seed` would note it for devices that begin later too, which takes longer."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global one is what the user's code draws from
    random.seed(seed)


def _state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(state: tuple[Any, ...]) -> None:
    cpu, cuda, numpys, pythons = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
    np.random.set_state(numpys)  # noqa: NPY002
    random.setstate(pythons)

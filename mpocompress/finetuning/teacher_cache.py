"""What the teacher puts out for a batch, remembered where the same batch comes again in a later pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mpocompress.finetuning.data import Example
from mpocompress.finetuning.objective import called, compared
from mpocompress.user.randomness import Randomness

REMEMBERED_BYTES = 2**28
"""Outputs are kept up to so many bytes."""


class Lessons:
    """The outputs of a teacher.

    A teacher is dense, and may take most of the time of a step. A list of batches is the same in every pass; so are its
    outputs for them. Batches are told by a digest of their inputs. Where the third pass brings one that was not there
    before, batches are drawn anew, and nothing is remembered any more.

    Args:
        teacher: the teacher, in evaluation mode.
        is_stateful: whether it goes on where it was at the end of the batch before, and so has to run every time.
        low: whether it multiplies in bfloat16.
        first: number of the pass that a run begins in, or goes on in.
        device: where it is.
    """

    def __init__(self, teacher: nn.Module, *, is_stateful: bool, low: bool, first: int, device: torch.device) -> None:
        self._teacher, self._low, self._first, self._device = teacher, low, first, device
        self._held: dict[bytes, Tensor] = {}
        self._is_remembering, self._is_full = not is_stateful, False

    def expected(self, example: Example, number: int) -> Tensor:
        """What the teacher puts out for a batch.

        Args:
            example: the batch, on any device.
            number: of the pass over the data.

        Returns:
            The outputs that are compared, on the device.

        Raises:
            FinetuneError: the teacher does not take the batch, or puts out nothing that could be compared.
        """
        key = _digest(example.inputs) if self._is_remembering else None
        if key is not None and key in self._held:
            return self._held[key]
        if number > self._first + 1 and not self._is_full:
            self._held, self._is_remembering = {}, False
        low = torch.autocast(self._device.type, torch.bfloat16, enabled=self._low)
        with torch.no_grad(), Randomness(0).drawing(), low:  # whatever it draws is the same, remembered or not
            found = compared(called(self._teacher, example.on(self._device)))
        if key is not None and self._is_remembering:
            size = sum(one.numel() * one.element_size() for one in (found, *self._held.values()))
            self._is_full |= size > REMEMBERED_BYTES
            if not self._is_full:
                self._held[key] = found
        return found


def _digest(inputs: object) -> bytes | None:
    """What tells a batch from others; None where it lies on a GPU, from which it would have to be copied."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(inputs):
        if not isinstance(part, Tensor):
            digest.update(repr(part).encode())
            continue
        if part.device.type != "cpu" or part.is_sparse:
            return None
        digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
        digest.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _parts(value: object) -> Iterator[object]:
    """Tensors and whatever else makes up the inputs, in order."""
    if isinstance(value, PackedSequence):
        yield from (part for part in value if part is not None)
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield name
            yield from _parts(one)
    elif isinstance(value, tuple | list):
        yield len(value)
        for one in value:
            yield from _parts(one)
    else:
        yield value

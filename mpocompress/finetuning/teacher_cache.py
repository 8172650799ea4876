"""Cache of the teacher's outputs, for batches that occur again in a later pass."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from mpocompress.finetuning.forward import compared_output, run_model
from mpocompress.finetuning.precision import autocast
from mpocompress.user.batches import Batch
from mpocompress.user.pytree import leaves_with_paths
from mpocompress.user.randomness import Randomness

CACHE_BYTES = 2**28
"""Largest size of all cached outputs."""
TEACHER_SEED = 0


class TeacherCache:
    """The outputs of a teacher.

    A teacher is dense, and may take most of the time of a step. A list of batches is the same in every pass, and so are
    the outputs for them. Batches are identified by a digest of their inputs. If the third pass has a new batch, batches
    are drawn again in every pass, and caching stops.

    Args:
        teacher: the teacher, in evaluation mode.
        is_stateful: whether its outputs depend on the previous batches, so that it has to run every time.
        dtype: dtype of its matrix products; see `MatmulDtypes`.
        first: number of the pass that the run starts in or resumes in.
        device: its device.
    """

    def __init__(self, teacher: nn.Module, *, is_stateful: bool, dtype: str, first: int, device: torch.device) -> None:
        self._teacher, self._dtype, self._first, self._device = teacher, dtype, first, device
        self._outputs: dict[bytes, Tensor] = {}
        self._is_caching, self._is_full = not is_stateful, False

    def output(self, batch: Batch, number: int) -> Tensor:
        """Return the compared output of the teacher for a batch, on its device.

        Args:
            batch: the batch, on any device.
            number: number of the pass over the data.

        Raises:
            FinetuneError: the teacher does not accept the batch, or its output has no tensor to compare.
        """
        key = _digest(batch.inputs) if self._is_caching else None
        if key is not None and key in self._outputs:
            return self._outputs[key]
        if number > self._first + 1 and not self._is_full:
            self._outputs, self._is_caching = {}, False
        # Seeded: random numbers that the teacher draws must not depend on whether its output was cached.
        with torch.no_grad(), Randomness(TEACHER_SEED).drawing(), autocast(self._device, self._dtype):
            output = compared_output(run_model(self._teacher, batch.to(self._device)))
        if key is not None and self._is_caching:
            size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (output, *self._outputs.values()))
            self._is_full |= size_bytes > CACHE_BYTES
            if not self._is_full:
                self._outputs[key] = output
        return output


def _digest(inputs: object) -> bytes | None:
    """Return a digest of inputs; None if they have no cheap one, as tensors on a GPU, which would have to be copied."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves_with_paths(inputs):
        digest.update(repr(path).encode())
        if isinstance(leaf, Tensor):
            if leaf.device.type != "cpu" or leaf.is_sparse:
                return None
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            digest.update(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif leaf is None or isinstance(leaf, str | bytes | int | float):
            digest.update(repr(leaf).encode())
        else:
            return None
    return digest.digest()

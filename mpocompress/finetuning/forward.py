"""Calls of a model in fine-tuning: the output of a batch, and the tensor of it that is compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mpocompress.calibration.outputs import primary
from mpocompress.errors import CalibrationError, FinetuneError, MPOCompressError
from mpocompress.user.batches import Batch, call_model
from mpocompress.user.code import describe_error


def run_model(model: nn.Module, batch: Batch) -> object:
    """Return the output of a model for a batch on its device.

    Raises:
        FinetuneError: the model raises. Running out of memory is passed on as it is.
    """
    try:
        return call_model(model, batch.inputs)
    except (MPOCompressError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise FinetuneError(
            where=type(model).__name__,
            found=describe_error(error),
            why="the model does not accept the training data",
            action="Give batches that the model can be called with: a tensor, a tuple of arguments, or a mapping of "
            "named arguments; or pairs of that and a target. Write two arguments without a target as a mapping, or as "
            "((a, b), None).",
        ) from error


def compared_output(output: object) -> Tensor:
    """Return the tensor of an output that is compared with that of another model; see `primary`.

    Raises:
        FinetuneError: there is no tensor to compare.
    """
    with as_finetune_error():
        return primary(output)[0]


@contextmanager
def as_finetune_error() -> Iterator[None]:
    """Raise a CalibrationError of the block as FinetuneError."""
    try:
        yield
    except CalibrationError as error:
        raise FinetuneError(where=error.where, found=error.found, why=error.why, action=error.action) from error

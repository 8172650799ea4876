"""Outputs of a model: the tensor that is compared with that of another model, and the rows of it that count."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mpocompress.errors import CalibrationError
from mpocompress.user.batches import Batch
from mpocompress.user.pytree import leaves_with_paths

IGNORED = -100
"""A class that stands for no target, as in `torch.nn.functional.cross_entropy`."""


def primary(output: object) -> tuple[Tensor, str]:
    """Return the tensor of a model's output that is compared, and its name.

    Args:
        output: whatever the model returns: a tensor, or a tree of them.

    Returns:
        The logits if the output has some, otherwise its first non-empty floating-point tensor that is no scalar; and
        the key of the mapping that it comes from, empty if there is none.

    Raises:
        CalibrationError: there is no such tensor.

    Example:
        >>> primary((torch.ones(2, 3), None))[0].shape
        torch.Size([2, 3])
    """
    for path, leaf in leaves_with_paths(output, first="logits"):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0 and leaf.numel() > 0:
            return leaf, next((key for key in reversed(path) if isinstance(key, str)), "")
    raise CalibrationError(
        where="the model",
        found=f"an output of type {type(output).__name__}",
        why="it contains no floating-point tensor to compare",
        action="Wrap the model in a module that returns one.",
    )


def output_rows(
    output: Tensor,  # shape: (..., outputs) or (samples,)
    samples: int,
) -> Tensor:
    """Return an output whose last dim is the outputs of one row, as a view.

    Args:
        output: the output.
        samples: samples in the batch; an output of one number per sample gets a last dim of 1.
    """
    return output[:, None] if output.dim() == 1 and len(output) == samples else output


def counted_rows(rows: Tensor, batch: Batch) -> Tensor | None:
    """Return a mask of the rows that count, which excludes padding and rows whose target is `IGNORED`.

    Args:
        rows: an output, shape (..., outputs).
        batch: its batch; padding is read from `attention_mask`, targets from `labels` if the inputs have them.

    Returns:
        A boolean mask of shape (...); None if all rows count, or none does.
    """
    shape, mask = rows.shape[:-1], None
    inputs, target = batch.inputs, batch.target
    if isinstance(inputs, Mapping):
        attention, target = inputs.get("attention_mask"), inputs.get("labels", target)
        if isinstance(attention, Tensor) and attention.shape == shape:
            mask = attention.bool()
    if isinstance(target, Tensor) and target.dtype == torch.int64 and target.shape == shape:
        has_target = target != IGNORED
        mask = has_target if mask is None else mask & has_target
    return None if mask is None or bool(mask.all()) or not bool(mask.any()) else mask.to(rows.device)


def flat_rows(rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the rows as a matrix, those outside the mask left out.

    Args:
        rows: shape (..., outputs).
        mask: as `counted_rows` returns it.
    """
    return rows.reshape(-1, rows.shape[-1]) if mask is None else rows[mask]

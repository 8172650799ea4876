"""Losses on targets: the one that suits the outputs, the user's, and the one that a model computes itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mpocompress.calibration.divergence import Measure
from mpocompress.calibration.options import LossFunction
from mpocompress.calibration.outputs import IGNORED
from mpocompress.errors import FinetuneError
from mpocompress.text import shown
from mpocompress.user.code import describe_error

GIVE_LOSS = "Give a loss: a function of the model's output and a target that returns a scalar."
"""What to do if no loss follows from the outputs and targets."""


def model_loss(output: object) -> Tensor | None:
    """Return the loss that a model computed itself: a scalar under `loss` in a mapping, as models of transformers do.

    Args:
        output: the output of the model.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else None
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def user_loss(function: LossFunction, output: object, target: object) -> Tensor:
    """Return the user's loss, a scalar.

    Raises:
        FinetuneError: the function raises, or returns no scalar tensor.
    """
    try:
        loss: object = function(output, target)
    except Exception as error:
        raise FinetuneError(
            where="loss",
            found=describe_error(error),
            why="the loss could not be computed",
            action="Fix the error above: a loss is a function of the model's output and a target.",
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise FinetuneError(
            where="loss", found=f"a {type(loss).__name__}{shape}", why="a loss is a scalar tensor", action=GIVE_LOSS
        )
    return loss.reshape(())


def default_loss(measure: Measure | None, rows: Tensor | None, target: object, *, scale: float) -> Tensor:
    """Return the loss that suits the outputs: cross entropy, 1 - cosine or the relative squared error.

    Args:
        measure: how outputs are compared.
        rows: the outputs, shape (..., outputs).
        target: class numbers of shape (...), or values of the shape of the outputs.
        scale: the mean square that squared errors are relative to.

    Raises:
        FinetuneError: the target does not fit the outputs.
    """
    if isinstance(target, Tensor) and rows is not None and measure is not None:
        target = target.to(rows.device)
        is_integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
        if measure.kind == "classification" and is_integer and target.shape == rows.shape[:-1]:
            logs = measure.log_probabilities(rows.float().reshape(-1, rows.shape[-1]))
            return functional.nll_loss(logs, target.reshape(-1).long(), ignore_index=IGNORED)
        if target.is_floating_point():
            is_single = target.shape == rows.shape[:-1] and rows.shape[-1] == 1
            target = target[..., None] if is_single else target
            if target.shape == rows.shape:
                return _value_loss(measure, rows, target, scale)
    raise _unsuitable(rows, target)


def _value_loss(measure: Measure, rows: Tensor, target: Tensor, scale: float) -> Tensor:
    desired, outputs = (tensor.float().reshape(-1, tensor.shape[-1]) for tensor in (target, rows))
    if measure.kind == "classification":
        return -(desired * measure.log_probabilities(outputs)).sum(dim=1).mean()
    if measure.kind == "embedding":
        return 1.0 - functional.cosine_similarity(desired, outputs).mean()
    return (outputs - desired).square().mean() / scale


def _unsuitable(rows: Tensor | None, target: object) -> FinetuneError:
    described = f"{tuple(target.shape)} {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
    outputs = f"shape {tuple(rows.shape)}" if rows is not None else "unknown kind"
    is_classes = isinstance(target, Tensor) and target.dtype == torch.int64
    action = GIVE_LOSS
    if is_classes and rows is not None and isinstance(target, Tensor) and target.shape == rows.shape[:-1]:
        action = f"If the outputs are the scores of a classifier, give kind classification. Otherwise: {GIVE_LOSS}"
    return FinetuneError(
        where="training data",
        found=f"a target of {shown(described)} for outputs of {outputs}",
        why="the default loss needs class numbers for scores, or values of the same shape",
        action=action,
    )

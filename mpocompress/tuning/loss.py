"""The loss of one batch: the model and its teacher called, and their outputs compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpocompress.tuning.feed import Example
from mpocompress.tuning.objective import Objective, called, compared
from mpocompress.tuning.way import Way


def loss_of(
    model: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    example: Example,
    way: Way,
    device: torch.device,
) -> Tensor:
    """The loss of one batch, open to gradients.

    Args:
        model: the model.
        teacher: what it learns from.
        objective: what is minimised.
        example: the batch, on any device.
        way: how the models run.
        device: where they are.

    Returns:
        A scalar.

    Raises:
        TuningError: the models do not take the batch, or their outputs cannot be compared.
    """
    there = example.on(device)
    expected = None
    if teacher is not None and objective.share:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=way.teacher_low):
            expected = compared(called(teacher, there))
    with torch.autocast(device.type, torch.bfloat16, enabled=way.low):
        output = called(model, there)
    return objective.losses(output, expected, there).total

"""The loss of one batch: the model called, and its outputs compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpocompress.finetuning.data import Example
from mpocompress.finetuning.objective import Objective, called
from mpocompress.finetuning.precision import Way


def loss_of(
    model: nn.Module,
    expected: Tensor | None,
    objective: Objective,
    example: Example,
    way: Way,
    device: torch.device,
) -> Tensor:
    """The loss of one batch, open to gradients.

    Args:
        model: the model.
        expected: what the teacher puts out for it; None where that does not count.
        objective: what is minimised.
        example: the batch, on any device.
        way: how it runs.
        device: where it is.

    Returns:
        A scalar.

    Raises:
        FinetuneError: the model does not take the batch, or the outputs cannot be compared.
    """
    there = example.on(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=way.low):
        output = called(model, there)
    return objective.losses(output, expected, there).total

"""Dtypes of the matrix products during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from mpocompress.reports.json_documents import choice

MatmulDtype = Annotated[str, choice("float32", "bfloat16")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulDtypes:
    """Dtypes of the matrix products during training: `float32` for those of the weights, or `bfloat16` by autocast.

    Args:
        model: dtype of the trained model.
        teacher: dtype of the teacher.
    """

    model: MatmulDtype = "float32"
    teacher: MatmulDtype = "float32"

    def __str__(self) -> str:
        return self.model if self.model == self.teacher else f"{self.model}, teacher in {self.teacher}"


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Return the context that matrix products run in.

    Args:
        device: device of the model.
        dtype: as in `MatmulDtypes`.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

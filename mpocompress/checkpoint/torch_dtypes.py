"""Conversion between names of element types and `torch.dtype`."""

from __future__ import annotations

import torch

from mpocompress.checkpoint.dtypes import DTYPES, DType
from mpocompress.errors import CheckpointError


def torch_dtype(dtype: DType | str) -> torch.dtype:
    """Return the `torch.dtype` of an element type or its name.

    Raises:
        CheckpointError: If the installed torch does not have it.

    Example:
        >>> torch_dtype("bfloat16")
        torch.bfloat16
    """
    converted = getattr(torch, str(dtype), None)
    if not isinstance(converted, torch.dtype):
        raise CheckpointError(
            where=f"dtype {dtype}",
            found=f"torch {torch.__version__}",
            why="this version of torch does not have the dtype",
            action="Install a newer version of torch.",
        )
    return converted


def dtype_of(dtype: torch.dtype) -> DType:
    """Return the element type of a `torch.dtype`.

    Example:
        >>> dtype_of(torch.bfloat16).name
        'bfloat16'
    """
    return DTYPES[str(dtype).removeprefix("torch.")]

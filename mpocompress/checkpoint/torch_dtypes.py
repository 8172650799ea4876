"""Conversion between names of element types and `torch.dtype`."""

from __future__ import annotations

import torch

from mpocompress.checkpoint.dtypes import DTYPES, DType


def torch_dtype(dtype: DType | str) -> torch.dtype:
    """Return the `torch.dtype` of an element type or its name.

    Example:
        >>> torch_dtype("bfloat16")
        torch.bfloat16
    """
    converted: torch.dtype = getattr(torch, str(dtype))
    return converted


def dtype_of(dtype: torch.dtype) -> DType:
    """Return the element type of a `torch.dtype`.

    Example:
        >>> dtype_of(torch.bfloat16).name
        'bfloat16'
    """
    return DTYPES[str(dtype).removeprefix("torch.")]

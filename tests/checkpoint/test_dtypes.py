"""The table of element types is that of torch."""

from __future__ import annotations

import pytest
import torch

from mpocompress.checkpoint.dtypes import DTYPES, SAFETENSORS_DTYPES, DType
from mpocompress.checkpoint.torch_dtypes import dtype_of, torch_dtype
from mpocompress.errors import CheckpointError

OF_TORCH = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)


@pytest.mark.parametrize("dtype", OF_TORCH, ids=str)
def test_every_dtype_of_torch_is_in_the_table(dtype: torch.dtype) -> None:
    entry = dtype_of(dtype)
    assert f"torch.{entry}" == str(dtype)
    assert entry.itemsize == dtype.itemsize
    assert entry.is_floating_point == dtype.is_floating_point
    assert entry.is_complex == dtype.is_complex
    assert torch_dtype(entry) == torch_dtype(entry.name) == dtype


def test_names_are_given_once() -> None:
    assert all(name == dtype.name for name, dtype in DTYPES.items())
    assert all(name == dtype.safetensors for name, dtype in SAFETENSORS_DTYPES.items())
    assert len(SAFETENSORS_DTYPES) == sum(dtype.safetensors is not None for dtype in DTYPES.values())


def test_a_dtype_that_this_torch_lacks_is_refused() -> None:
    message = (
        r"^dtype float9: torch .*; this version of torch does not have the dtype\. Install a newer version of torch\.$"
    )

    with pytest.raises(CheckpointError, match=message):
        torch_dtype(DType("float9", 2, "float"))

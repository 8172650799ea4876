"""Tensors put aside and given back; nothing has a name in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.errors import OutputError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8])
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = [torch.arange(count).to(dtype).reshape(count, 1).expand(count, 3) for count in (1, 5, 0, 1000)]
    with Spool(tmp_path / "small.pt") as spool:
        places = [spool.add(tensor) for tensor in tensors[:2]]
        early = spool.tensor(places[0])
        places += [spool.add(tensor) for tensor in tensors[2:]]
        back = [spool.tensor(place) for place in places]

        assert list(tmp_path.iterdir()) == []
    for tensor, actual in zip(tensors, back, strict=True):
        assert actual.dtype == dtype
        assert torch.equal(actual, tensor)
        assert actual.untyped_storage().nbytes() == actual.numel() * actual.element_size()
    assert torch.equal(early, tensors[0])


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"finished tensors cannot be stored .* Check the free space"):
        Spool(tmp_path / "none" / "small.pt")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with Spool(tmp_path / "small.pt") as spool:
        spool._stream.close()
        spool._stream = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
        with pytest.raises(OutputError, match=r"No space left on device.* nothing was written"):
            spool.add(torch.ones(10))

"""A loaded model is trained with FSDP2 as by one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import mpocompress
from mpocompress.errors import CheckpointError


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_what_was_prepared_is_not_used_after_a_step(one_process: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    # As from the allocator of a GPU, parameters come back to the memory that they had.
    monkeypatch.setattr("torch.distributed.fsdp._fully_shard._fsdp_param.free_storage", lambda tensor: None)
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    small, _ = mpocompress.compress_module(net, truncation=mpocompress.Truncation(max_bond=8))
    fully_shard(small, mesh=one_process)
    optimizer = torch.optim.SGD(small.parameters(), lr=1.0)
    x = torch.randn(4, 64)
    for _ in range(3):
        with torch.no_grad():
            found = small(x).clone()
        expected = small(x)
        torch.testing.assert_close(found, expected.detach())
        optimizer.zero_grad()
        expected.square().mean().backward()
        optimizer.step()


def test_a_sharded_model_is_not_saved(one_process: DeviceMesh, tmp_path: Path) -> None:
    small, _ = mpocompress.compress_module(
        nn.Sequential(nn.Linear(64, 64)), truncation=mpocompress.Truncation(max_bond=8)
    )
    fully_shard(small, mesh=one_process)

    with pytest.raises(CheckpointError, match="is a DTensor; only dense tensors"):
        mpocompress.save(small, tmp_path / "small.pt")
    assert not (tmp_path / "small.pt").exists()

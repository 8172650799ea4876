"""Files that were changed on their way: saved on a GPU or on another machine; and tensors that are nowhere."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.checkpoint.files import rezip
from tests.forms.model import model, state
from tests.forms.processes import process_group
from tests.forms.registry import Group
from tests.forms.state_dicts import saved

group = Group("Where it was saved")


def moved(folder: Path, value: object) -> Path:
    """A file as it is saved on a GPU: only the name of the device differs."""
    saved(value, folder / "cpu.pt")
    here, there = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    rezip(folder / "cpu.pt", folder / "model.pt", lambda data: data.replace(here, there))
    (folder / "cpu.pt").unlink()
    return folder / "model.pt"


@group.read("a state dict saved on a GPU", "torch-zip")
def from_gpu(folder: Path) -> Path:
    return moved(folder, model().state_dict())


@group.read("a whole module saved on a GPU", "torch-zip", classes=True)
def module_from_gpu(folder: Path) -> Path:
    return moved(folder, model())


@group.read("a file saved on a big-endian machine", "torch-zip")
def big_endian(folder: Path) -> Path:
    tensors = {name: tensor.flatten().view(torch.uint8).reshape(-1, 4).flip(1) for name, tensor in state().items()}
    turned = {name: one.reshape(-1).view(torch.float32).reshape(state()[name].shape) for name, one in tensors.items()}
    saved(turned, folder / "little.pt")
    rezip(folder / "little.pt", folder / "model.pt", lambda _: b"big", record="byteorder")
    (folder / "little.pt").unlink()
    return folder / "model.pt"


@group.refused("weights on the meta device", "a tensor without data (device meta)", "after its weights were loaded")
def without_data(folder: Path) -> Path:
    tensors = state()
    return saved({**tensors, "fc.weight": tensors["fc.weight"].to("meta")}, folder / "model.pt")


@group.refused("a `DTensor` among the weights", "fc.weight is a tensor of class", "ordinary floating-point tensors")
def sharded_tensor(folder: Path) -> Path:
    tensors = state()
    with process_group():
        mesh = init_device_mesh("cpu", (1,))
        return saved(
            {**tensors, "fc.weight": distribute_tensor(tensors["fc.weight"], mesh, [Shard(0)])}, folder / "model.pt"
        )

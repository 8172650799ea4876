"""State dicts: tensors by name, and nothing else."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.forms.model import Net, model, state
from tests.forms.processes import process_group
from tests.forms.registry import Group

group = Group("State dicts")


def saved(value: object, path: Path) -> Path:
    """What torch.save makes of a value."""
    torch.save(value, path)
    return path


@group.read("`torch.save(model.state_dict(), ...)`", "torch-zip")
def ordered(folder: Path) -> Path:
    return saved(model().state_dict(), folder / "model.pt")


@group.read("a plain `dict` of tensors", "torch-zip")
def plain(folder: Path) -> Path:
    return saved(state(), folder / "model.pt")


for extension in (".bin", ".pkl", ".ckpt", ".pth.tar", ".safetensors", ""):

    @group.read(
        f"the same named `model{extension}`" + ("" if extension else ", without an extension"),
        "torch-zip",
        note="the name of a file does not matter",
    )
    def renamed(folder: Path, extension: str = extension) -> Path:
        with (folder / f"model{extension}").open("wb") as stream:  # torch.save itself refuses no name
            torch.save(state(), stream)
        return folder / f"model{extension}"


for protocol in (2, 3, 4, 5):

    @group.read(f"pickle protocol {protocol}", "torch-zip")
    def with_protocol(folder: Path, protocol: int = protocol) -> Path:
        torch.save(model().state_dict(), folder / "model.pt", pickle_protocol=protocol)
        return folder / "model.pt"


@group.read("the form of torch before 1.6 (`_use_new_zipfile_serialization=False`)", "torch-legacy")
def legacy(folder: Path) -> Path:
    torch.save(model().state_dict(), folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


@group.read("the same with pickle protocol 4", "torch-legacy")
def legacy_newer_protocol(folder: Path) -> Path:
    torch.save(state(), folder / "model.pt", pickle_protocol=4, _use_new_zipfile_serialization=False)
    return folder / "model.pt"


@group.read("`pickle.dump(state_dict, ...)`", "pickle", note="written without torch.save")
def bare_pickle(folder: Path) -> Path:
    (folder / "model.pkl").write_bytes(pickle.dumps(model().state_dict()))
    return folder / "model.pkl"


@group.read("parameters themselves, `dict(model.named_parameters())`", "torch-zip", note="gradients are not kept")
def parameters(folder: Path) -> Path:
    return saved(dict(model().named_parameters()), folder / "model.pt")


@group.read("tensors with `requires_grad`", "torch-zip")
def with_gradient(folder: Path) -> Path:
    return saved({name: tensor.clone().requires_grad_() for name, tensor in state().items()}, folder / "model.pt")


@group.read("all weights as views of one storage", "torch-zip", note="as a GPU flattens the weights of an LSTM")
def one_storage(folder: Path) -> Path:
    tensors = state()
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    parts = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
    views = {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}
    return saved(views, folder / "model.pt")


@group.read("transposed, strided and sliced tensors", "torch-zip")
def strided(folder: Path) -> Path:
    def laid_out(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2:
            return torch.stack([tensor, tensor], dim=-1)[..., 0]
        wide = torch.zeros(tensor.shape[1] + 3, tensor.shape[0] + 2).t()
        wide[1:-1, 2:-1] = tensor
        return wide[1:-1, 2:-1]

    return saved({name: laid_out(tensor) for name, tensor in state().items()}, folder / "model.pt")


@group.read("a name tied to another", "torch-zip", note="compressed once; the second name is kept as an alias")
def tied(folder: Path) -> Path:
    tensors = state()
    return saved({**tensors, "decoder.weight": tensors["embed.weight"]}, folder / "model.pt")


for dtype in (torch.float16, torch.bfloat16, torch.float64):

    @group.read(f"weights in {str(dtype).removeprefix('torch.')}", "torch-zip", dtype=dtype)
    def in_dtype(folder: Path, dtype: torch.dtype = dtype) -> Path:
        return saved(state(dtype), folder / "model.pt")


@group.read("the state dict of `DataParallel`", "torch-zip", prefix="module.", note="the names keep `module.`")
def data_parallel(folder: Path) -> Path:
    return saved(nn.DataParallel(model()).state_dict(), folder / "model.pt")


@group.read("the state dict of `DistributedDataParallel`", "torch-zip", prefix="module.")
def distributed(folder: Path) -> Path:
    with process_group():
        return saved(nn.parallel.DistributedDataParallel(model()).state_dict(), folder / "model.pt")


@group.read("the state dict of a model from `torch.compile`", "torch-zip", prefix="_orig_mod.")
def compiled(folder: Path) -> Path:
    compiled_model: Net = torch.compile(model())  # type: ignore[assignment]
    return saved(compiled_model.state_dict(), folder / "model.pt")


@group.read("the state dict of `swa_utils.AveragedModel`", "torch-zip", prefix="module.", note="with `n_averaged`")
def averaged(folder: Path) -> Path:
    return saved(AveragedModel(model()).state_dict(), folder / "model.pt")


@group.read(
    "a sparse tensor beside the weights",
    "torch-zip",
    says=["table: .* are carried over unchanged"],
    note="kept as it is",
)
def sparse_beside(folder: Path) -> Path:
    return saved({**state(), "table": torch.eye(3).to_sparse()}, folder / "model.pt")


@group.refused("a quantized tensor among the weights", "table is a quantized tensor", "ordinary floating-point")
def quantized_beside(folder: Path) -> Path:
    table = torch.quantize_per_tensor(torch.eye(64), 0.1, 0, torch.qint8)
    return saved({**state(), "table": table}, folder / "model.pt")


@group.read("a list of state dicts", "torch-zip", key="0", note="the key is the position of the state dict, `0`")
def listed(folder: Path) -> Path:
    return saved([state(), {name: 2 * tensor for name, tensor in state().items()}], folder / "model.pt")


@group.read("a list of one class, its state dict and its arguments", "torch-zip", note="the class is not loaded")
def class_and_state(folder: Path) -> Path:
    return saved([Net, state(), {"hidden": 64}], folder / "model.pt")


@group.read("an OrderedDict with additional attributes", "torch-zip")
def with_attributes(folder: Path) -> Path:
    tensors = OrderedDict(state())
    tensors.version = (1, "a")  # type: ignore[attr-defined]
    return saved(tensors, folder / "model.pt")

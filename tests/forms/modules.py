"""Whole modules, pickled with torch.save(model, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.forms.model import Net, gone_afterwards, model, put
from tests.forms.registry import Group
from tests.forms.state_dicts import saved

group = Group("Whole modules")


@group.read("`torch.save(model, ...)`", "torch-zip", classes=True, note="the class of every layer is known")
def whole(folder: Path) -> Path:
    return saved(model(), folder / "model.pt")


@group.read("the same if its class cannot be imported", "torch-zip", classes=True, note="it is not needed")
def unimportable(folder: Path) -> Path:
    with gone_afterwards("train_script") as script:
        return saved(model(put(script, type("Net", (Net,), {}))), folder / "model.pt")


@group.read("the same of a class in `__main__`", "torch-zip", classes=True)
def from_main(folder: Path) -> Path:
    with gone_afterwards("__main__") as script:
        return saved(model(put(script, type("ScriptNet", (Net,), {}))), folder / "model.pt")


for protocol in (4, 5):

    @group.read(f"the same with pickle protocol {protocol}", "torch-zip", classes=True)
    def with_protocol(folder: Path, protocol: int = protocol) -> Path:
        torch.save(model(), folder / "model.pt", pickle_protocol=protocol)
        return folder / "model.pt"


@group.read("the same in the form of torch before 1.6", "torch-legacy", classes=True)
def legacy(folder: Path) -> Path:
    torch.save(model(), folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


@group.read("layers that are subclasses of `nn.LSTM` and `nn.Linear`", "torch-zip")
def subclassed(folder: Path) -> Path:
    with gone_afterwards("train_script") as script:
        net = model()
        net.lstm.__class__ = put(script, type("MyLSTM", (nn.LSTM,), {}))
        net.fc.__class__ = put(script, type("MyLinear", (nn.Linear,), {}))
        return saved(net, folder / "model.pt")


@group.read(
    "a module in a training dict, with an empty average",
    "torch-zip",
    classes=True,
    note="as YOLO saves it: `{'model': module, 'ema': None, 'epoch': 3}`",
)
def in_a_dict(folder: Path) -> Path:
    return saved({"model": model(), "ema": None, "epoch": 3, "optimizer": None}, folder / "model.pt")


@group.read("a module with hooks and additional values", "torch-zip", classes=True)
def with_hooks(folder: Path) -> Path:
    net: Any = model()
    net.fc.register_forward_hook(_hook)
    net.register_full_backward_hook(_hook)
    net.steps, net.names, net.best = 3, ["a", "b"], {"loss": 0.5}
    return saved(net, folder / "model.pt")


def _hook(module: nn.Module, inputs: object, output: Tensor) -> None: ...


@group.read("a module wrapped in `DataParallel`", "torch-zip", prefix="module.")
def wrapped(folder: Path) -> Path:
    return saved(nn.DataParallel(model()), folder / "model.pt")


@group.read("a module in half precision", "torch-zip", dtype=torch.float16, classes=True)
def half(folder: Path) -> Path:
    return saved(model().half(), folder / "model.pt")


def quantized_model() -> nn.Module:
    """The model with its Linear layers quantized."""
    net: nn.Module = torch.ao.quantization.quantize_dynamic(model(), {nn.Linear})  # type: ignore[no-untyped-call]
    return net


@group.refused(
    "a quantized module (`quantize_dynamic` of the Linear layers)",
    "_packed_params is an object that packs quantized weights",
    "ordinary floating-point tensors",
)
def quantized(folder: Path) -> Path:
    return saved(quantized_model(), folder / "model.pt")


@group.refused(
    "the state dict of such a module",
    "fc._packed_params._packed_params is made of a quantized tensor",
    "ordinary floating-point tensors",
)
def quantized_state(folder: Path) -> Path:
    return saved(quantized_model().state_dict(), folder / "model.pt")

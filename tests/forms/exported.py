"""What torch exports a model to: TorchScript, torch.export and torch.package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.package.package_exporter import PackageExporter

from tests.forms.model import TOKENS, model
from tests.forms.registry import Group

group = Group("Exported models")


@group.read("TorchScript from `torch.jit.script`", "torchscript", classes=True)
def scripted(folder: Path) -> Path:
    torch.jit.save(torch.jit.script(model()), folder / "model.pt")
    return folder / "model.pt"


@group.read("TorchScript from `torch.jit.trace`", "torchscript", classes=True)
def traced(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(model(), TOKENS), folder / "model.pt")  # type: ignore[no-untyped-call]
    return folder / "model.pt"


@group.read("TorchScript after `.half()`", "torchscript", dtype=torch.float16, classes=True)
def scripted_half(folder: Path) -> Path:
    torch.jit.save(torch.jit.script(model()).half(), folder / "model.pt")
    return folder / "model.pt"


@group.refused(
    "frozen TorchScript (`torch.jit.freeze`)",
    "a TorchScript archive without parameters",
    "Compress the module before torch.jit.freeze",
)
def frozen(folder: Path) -> Path:
    torch.jit.save(torch.jit.freeze(torch.jit.script(model())), folder / "model.pt")
    return folder / "model.pt"


@group.refused(
    "quantized TorchScript",
    "is an object that packs quantized weights",
    "Compress the original model",
)
def quantized_script(folder: Path) -> Path:
    net = torch.ao.quantization.quantize_dynamic(model(), {nn.Linear, nn.LSTM})  # type: ignore[no-untyped-call]
    torch.jit.save(torch.jit.script(net), folder / "model.pt")
    return folder / "model.pt"


@group.read("`torch.export.save` (.pt2)", "torch-export")
def exported(folder: Path) -> Path:
    torch.export.save(torch.export.export(model(), (TOKENS,)), folder / "model.pt2")
    return folder / "model.pt2"


@group.refused("torch.package", "a torch.package archive", "state_dict()")
def packaged(folder: Path) -> Path:
    with PackageExporter(folder / "model.pt") as package:
        package.extern("**")
        package.save_pickle("model", "model.pkl", model())
    return folder / "model.pt"

"""Whole compressed models in pickles: they name public classes only, load again, and are the same model."""

from __future__ import annotations

import copy
import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpocompress
from mpocompress.modules.provenance import provenance_of

SMALL = mpocompress.Selection(min_side=8)


class Net(nn.Module):
    """Has a layer of every kind, and two layers with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.cell = nn.LSTMCell(32, 16)
        self.first = nn.Linear(16, 24)
        self.tied = nn.Linear(16, 24)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.cell(self.lstm(x)[0][:, -1])
        y: Tensor = self.first(hidden) + self.tied(hidden)
        return y


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    truncation = mpocompress.Truncation(max_bond=4)
    compressed, _ = mpocompress.compress_module(Net(), truncation=truncation, selection=SMALL)
    return compressed.eval()


def globals_in(path: Path) -> set[tuple[str, str]]:
    """Return the module and the name of everything that the pickle in a file of `torch.save` names."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        operations = list(pickletools.genops(io.BytesIO(archive.read(name))))
    assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in operations)
    names = [str(argument).split(" ") for operation, argument, _ in operations if operation.name == "GLOBAL"]
    return {(module, name) for module, name in names}


def test_a_saved_model_names_public_classes_only(model: nn.Module, tmp_path: Path) -> None:
    model(torch.randn(2, 3, 24))  # what is cached must not be pickled
    torch.save(model, tmp_path / "model.pt")
    named = globals_in(tmp_path / "model.pt")
    own = {name for module, name in named if module.partition(".")[0] == "mpocompress"}

    assert {module for module, _ in named if module.partition(".")[0] == "mpocompress"} == {"mpocompress"}
    assert own == {"MPOLSTM", "MPOLSTMCell", "MPOLinear", "MPOWeight", "Report", "Sites"} <= set(mpocompress.__all__)
    others = {module.partition(".")[0] for module, _ in named} - {"mpocompress", "tests"}
    assert others <= {"torch", "collections", "__builtin__", "_codecs"}


def test_it_loads_runs_and_is_saved_again(model: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 24)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)

    assert torch.equal(loaded(x), model(x))
    assert loaded.first.weight is loaded.tied.weight
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for path, weight in model.named_modules():
        if isinstance(weight, mpocompress.MPOWeight):
            copied, original = provenance_of(loaded.get_submodule(path)), provenance_of(weight)
            assert copied is not None
            assert original is not None
            assert copied.report == original.report
            assert (copied.matrix, copied.stored_name) == (original.matrix, original.stored_name)
    report = mpocompress.save(loaded, tmp_path / "small.safetensors")
    assert mpocompress.inspect(tmp_path / "small.safetensors") == report
    assert report.matrices == mpocompress.save(model, tmp_path / "other.safetensors").matrices


def test_a_weight_that_was_loaded_notices_changes(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "model.pt")
    x = torch.randn(2, 3, 24)
    copies: tuple[Any, ...] = (torch.load(tmp_path / "model.pt", weights_only=False), copy.deepcopy(model))
    for other in copies:
        before = other(x)
        with torch.no_grad():
            other.first.weight.core[0] = nn.Parameter(2.0 * other.first.weight.core[0])
        assert not torch.allclose(other(x), before)


def test_public_classes_have_a_stable_module() -> None:
    for name in mpocompress.__all__:
        value = getattr(mpocompress, name)
        if isinstance(value, type):
            assert (value.__module__, value.__qualname__) == ("mpocompress", name)

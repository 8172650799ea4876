"""A checkpoint looked at: what it is, holds and could give, with no weight read and nothing left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import mpocompress
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.compression.inspection import parameters_left
from mpocompress.errors import ModelError, SelectionError, SitesError
from mpocompress.layers.selection import Selection
from mpocompress.layers.specs import LayerSpec, MatrixSpec, Member
from mpocompress.mpo.sites import SitesChoice, candidates
from mpocompress.planning.bond_choice import choose_bonds
from mpocompress.planning.curves import MatrixCurves, error_curves
from mpocompress.planning.targets import Truncation
from mpocompress.reports.compression import Report
from mpocompress.reports.overview import Overview
from tests.inspecting import overview_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(90, 64)
        self.lstm = nn.LSTM(64, 64, num_layers=2)
        self.thin = nn.LSTM(28, 64)
        self.fc = nn.Linear(64, 80).half()
        self.twin = nn.Linear(64, 80)
        self.twin.weight = self.fc.weight
        self.norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(80, 5)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, reading a tensor or the bytes of a file is an error."""

    def refuse(*words: object) -> Any:
        raise AssertionError(f"data was read: {words}")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)
    monkeypatch.setattr(Checkpoint, "sha256", refuse)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"model": Net().state_dict(), "epoch": 3, "optimizer": {"state": torch.ones(3, 3)}}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def test_an_overview_accounts_for_every_tensor_without_reading_one(model: Path, unread: None) -> None:
    overview = overview_of(model)
    state = Net().state_dict()

    names = (
        [entry.name for entry in overview.weights] + [entry.name for entry in overview.skipped] + list(overview.aliases)
    )
    assert sorted(names) == sorted(state)
    assert overview.aliases == {"twin.weight": "fc.weight"}
    plain = [tensor for name, tensor in state.items() if name != "twin.weight"]
    assert (
        overview.parameters
        == sum(tensor.numel() for tensor in plain)
        == sum(total.parameters for total in overview.dtypes)
    )
    assert (
        overview.size_bytes
        == sum(tensor.nbytes for tensor in plain)
        == sum(total.size_bytes for total in overview.dtypes)
    )
    assert sum(total.tensors for total in overview.dtypes) == len(plain)
    assert [total.dtype for total in overview.dtypes] == ["float32", "float16", "int64"]
    assert overview.eligible_parameters == sum(weight.parameters for weight in overview.weights)
    assert (overview.file, overview.container, overview.key, overview.files) == ("m.pt", "torch-zip", "model", 1)
    assert overview.file_size_bytes == model.stat().st_size
    assert any("optimizer" in note for note in overview.notes)


def test_what_can_be_compressed_is_what_compress_takes(model: Path) -> None:
    overview = overview_of(model)
    report = mpocompress.plan(model, truncations=[Truncation(keep=0.5)], jobs=1).checkpoint

    assert {weight.name for weight in overview.weights} == {name for entry in report.matrices for name in entry.members}
    assert overview.skipped == report.skipped
    assert overview.eligible_parameters == report.totals.eligible_parameters
    assert [weight.name for weight in overview.weights] == [
        *("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l1", "lstm.weight_hh_l1"),
        *("thin.weight_ih_l0", "thin.weight_hh_l0", "fc.weight"),
    ]


def test_a_transposed_weight_has_the_shape_of_the_file(tmp_path: Path, unread: None) -> None:
    save_file({"c_fc.weight": torch.zeros(64, 256), "c_fc.bias": torch.zeros(256)}, tmp_path / "m.safetensors")

    (weight,) = overview_of(tmp_path / "m.safetensors").weights

    assert (weight.kind, weight.shape, weight.transposed, weight.parameters) == ("conv1d", (64, 256), True, 64 * 256)


def test_the_user_s_model_and_selection_count(model: Path, unread: None) -> None:
    overview = overview_of(model, model=Net(), selection=Selection(include=("lstm", "fc"), min_side=64))

    assert {weight.kind_from for weight in overview.weights} == {"model"}
    assert {weight.layer for weight in overview.weights} == {"lstm", "fc"}
    with pytest.raises(ModelError, match="no weight of the checkpoint has its name and shape"):
        overview_of(model, model=nn.Linear(2, 2))
    with pytest.raises(SelectionError, match="include pattern 'zz'"):
        overview_of(model, selection=Selection(include=("zz",)))
    with pytest.raises(SitesError, match="got 99"):
        overview_of(model, sites=99)


def test_a_fraction_to_keep_and_a_bond_in_the_low_rank_shape_are_counted(model: Path, unread: None) -> None:
    overview = overview_of(
        model, truncations=[Truncation(keep=0.25), Truncation(max_bond=4), Truncation(max_error=0.1)]
    )

    keep, bond = overview.estimates
    assert (keep.kind, keep.requested, keep.eligible_parameters_after) == (
        "keep",
        0.25,
        overview.eligible_parameters // 4,
    )
    counted = sum(min(rows * cols, 4 * (rows + cols)) for rows, cols in (weight.shape for weight in overview.weights))
    assert (bond.kind, bond.requested, bond.eligible_parameters_after) == ("bond", 4, counted)
    assert bond.parameters == overview.parameters - overview.eligible_parameters + counted
    assert overview.estimated_sites == "low rank"


@given(st.integers(1, 200), st.sampled_from(["lowrank", 2, 3]))
def test_a_count_is_what_a_plan_comes_to(bond: int, sites: SitesChoice) -> None:
    """A Linear has one form, so that the count has to be exact."""
    rows, cols = 96, 64
    matrix = MatrixSpec(name="w", members=(Member(name="w", shape=(rows, cols), dtype="float32"),))
    layer = LayerSpec(name="", kind="linear", forms=((matrix,),))
    known = MatrixCurves(curves=error_curves(torch.eye(rows, cols), candidates(rows, cols, sites)), squared_norm=cols)
    target = Truncation(max_bond=bond).target
    (choice,) = choose_bonds([layer], {"w": known}, target, 0)

    assert choice.parameters == parameters_left([layer], target, sites)


def test_inspecting_a_compressed_file_returns_its_report(model: Path, tmp_path: Path) -> None:
    small = tmp_path / "s.pt"
    report = mpocompress.compress(model, small, truncation=Truncation(max_bond=2), jobs=1)

    inspected = mpocompress.inspect(small)

    assert isinstance(inspected, Report)
    assert inspected == report
    assert mpocompress.inspect(small, selection=Selection(include=("no such layer",)), sites=3) == report


def test_inspecting_any_other_file_returns_its_overview(model: Path, unread: None) -> None:
    overview = mpocompress.inspect(model)

    assert isinstance(overview, Overview)
    assert overview.file == "m.pt"
    assert any("optimizer" in note for note in overview.notes)


def test_a_file_with_nothing_to_compress_has_an_overview_all_the_same(tmp_path: Path, unread: None) -> None:
    torch.save({"small.weight": torch.zeros(3, 3)}, tmp_path / "m.pt")

    overview = overview_of(tmp_path / "m.pt")

    assert (overview.weights, overview.eligible_parameters, overview.parameters) == ((), 0, 9)
    assert {entry.eligible_parameters_after for entry in overview.estimates} == {0}

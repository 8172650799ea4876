"""The JSON documents follow the schemas that the package ships."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import torch

import mpocompress
from mpocompress.cli.render.formatting import KIND_NAMES, KIND_SOURCES
from mpocompress.layers.specs import KindFrom, LayerKind
from mpocompress.reports.benchmark import BenchedKind, ContenderKind
from mpocompress.reports.calibration import OUTPUT_KINDS
from tests.inspecting import overview_of, report_in


def schema(name: str) -> Any:
    return json.loads(files("mpocompress").joinpath("reports", "schema", name).read_text())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    state = {
        **{f"lstm.{name}": value for name, value in torch.nn.LSTM(64, 64).state_dict().items()},
        "fc.weight": torch.randn(96, 64),
        "fc.bias": torch.zeros(96),
        "head.weight": torch.randn(10, 96),
    }
    state["tied.weight"] = state["fc.weight"]
    torch.save({"model": state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    "truncation",
    [
        mpocompress.Truncation(max_bond=4),
        mpocompress.Truncation(bond_by_layer={"fc": 4}),
        mpocompress.Truncation(max_error=1e-6),
        mpocompress.Truncation(max_params=30_000),
    ],
    ids=["bond", "bond-by-layer", "max-error", "max-params"],
)
def test_a_report_follows_its_schema(model: Path, tmp_path: Path, truncation: mpocompress.Truncation) -> None:
    small = tmp_path / "small.pt"
    written = json.loads(mpocompress.compress(model, small, truncation=truncation).to_json())
    inspected = json.loads(report_in(small).to_json(indent=2))

    jsonschema.validate(written, schema("report-1.json"))
    assert inspected == written


class Net(torch.nn.Module):
    """Has the weights of `model`; one of its layers never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(64, 64, batch_first=True)
        self.fc = torch.nn.Linear(64, 96)
        self.head = torch.nn.Linear(96, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fed: torch.Tensor = self.head(torch.nn.functional.linear(self.lstm(x)[0], self.fc.weight, self.fc.bias))
        return fed


@pytest.fixture
def calibration(model: Path) -> mpocompress.Calibration:
    torch.manual_seed(1)
    inputs = mpocompress.CalibrationInputs(batches=torch.randn(8, 4, 5, 64).unbind(), kind="classification")
    return mpocompress.calibrate(model, inputs, Net())


def test_a_report_with_calibration_inputs_follows_its_schema(
    model: Path, tmp_path: Path, calibration: mpocompress.Calibration
) -> None:
    small = tmp_path / "small.pt"
    target = mpocompress.Truncation(keep=0.3)
    written = json.loads(mpocompress.compress(model, small, truncation=target, calibration=calibration).to_json())

    jsonschema.validate(written, schema("report-1.json"))
    assert json.loads(report_in(small).to_json()) == written
    found = written["calibration"]
    assert (found["kind"], found["samples"], found["held_out"]) == ("classification", 24, 8)
    assert list(found["left_out"]) == ["fc.weight"]
    seen = [matrix for matrix in written["matrices"] if matrix["weighted_error"] is not None]
    assert [matrix["corrected_bias"] for matrix in seen] == ["lstm.bias_ih_l0"] * len(seen)
    assert all(matrix["sensitivity"] >= 0 for matrix in seen)
    declared = schema("report-1.json")
    assert set(found) == set(declared["properties"]["calibration"]["properties"])
    assert set(written) == set(declared["properties"])
    assert all(set(matrix) == set(declared["$defs"]["matrix"]["properties"]) for matrix in written["matrices"])


def test_a_plan_with_calibration_inputs_follows_its_schema(model: Path, calibration: mpocompress.Calibration) -> None:
    targets = (mpocompress.Truncation(keep=0.5), mpocompress.Truncation(keep=1e-9))
    document = json.loads(mpocompress.plan(model, truncations=targets, calibration=calibration).to_json())

    jsonschema.validate(document, schema("plan-1.json"))
    possible, impossible = (choice["divergence"] for choice in document["choices"])
    assert possible > 0
    assert impossible is None
    declared = schema("plan-1.json")["properties"]
    assert set(document) == set(declared)
    assert set(document["choices"][0]) == set(declared["choices"]["items"]["properties"])


def test_a_plan_follows_its_schema(model: Path) -> None:
    targets = (mpocompress.Truncation(keep=0.5), mpocompress.Truncation(keep=1e-9), mpocompress.Truncation(max_bond=4))
    document = json.loads(mpocompress.plan(model, truncations=targets).to_json())

    jsonschema.validate(document, schema("plan-1.json"))
    assert [bool(choice["problem"]) for choice in document["choices"]] == [False, True, False]


def test_an_overview_follows_its_schema(model: Path) -> None:
    document = json.loads(overview_of(model).to_json(indent=2))

    jsonschema.validate(document, schema("overview-1.json"))
    assert document["format"] == "mpocompress-overview"
    assert {weight["kind"] for weight in document["weights"]} == {"lstm", "linear"}


def test_every_kind_and_source_is_in_the_schemas(model: Path, tmp_path: Path) -> None:
    kinds, sources = list(get_args(LayerKind)), list(get_args(KindFrom))
    for name in ("report-1.json", "plan-1.json"):
        matrix = schema(name)["$defs"]["matrix"]["properties"]
        assert (matrix["kind"]["enum"], matrix["kind_from"]["enum"]) == (kinds, sources)
    weight = schema("overview-1.json")["properties"]["weights"]["items"]["properties"]
    assert (weight["kind"]["enum"], weight["kind_from"]["enum"]) == (kinds, sources)
    calibration = schema("report-1.json")["properties"]["calibration"]["properties"]
    assert calibration["kind"]["enum"] == list(OUTPUT_KINDS)
    measured = schema("bench-1.json")["properties"]["measured"]["items"]["properties"]
    assert measured["kind"]["enum"] == list(get_args(BenchedKind)) == [*kinds, "model"]
    contender = measured["cases"]["items"]["properties"]["contenders"]["items"]["properties"]
    assert contender["kind"]["enum"] == list(get_args(ContenderKind))
    assert (set(KIND_NAMES), set(KIND_SOURCES)) == (set(kinds), set(sources))


@pytest.mark.parametrize("name", ["report-1.json", "plan-1.json", "overview-1.json", "bench-1.json"])
def test_the_schemas_are_valid_and_say_no_to_an_empty_document(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    with pytest.raises(jsonschema.ValidationError, match="is a required property"):
        jsonschema.validate({}, schema(name))

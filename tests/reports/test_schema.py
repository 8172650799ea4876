"""The JSON Schemas that the package ships: up to date, valid, and followed by real documents."""

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
from mpocompress.reports import json_schema
from mpocompress.reports.benchmark import BenchKind
from mpocompress.reports.json_documents import Document
from tests.inspecting import overview_of, report_in
from tools import json_page, schemas
from tools.pages import is_current


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
    calibration_section = written["calibration"]
    assert [calibration_section[name] for name in ("kind", "samples", "held_out_samples")] == ["classification", 24, 8]
    assert list(calibration_section["uncalibrated"]) == ["fc.weight"]
    weighted = [matrix for matrix in written["matrices"] if matrix["weighted_error"] is not None]
    assert [matrix["corrected_bias"] for matrix in weighted] == ["lstm.bias_ih_l0"] * len(weighted)
    assert all(matrix["sensitivity"] >= 0 for matrix in weighted)


def test_a_plan_with_calibration_inputs_follows_its_schema(model: Path, calibration: mpocompress.Calibration) -> None:
    targets = (mpocompress.Truncation(keep=0.5), mpocompress.Truncation(keep=1e-9))
    document = json.loads(mpocompress.plan(model, truncations=targets, calibration=calibration).to_json())

    jsonschema.validate(document, schema("plan-1.json"))
    possible, impossible = (choice["divergence"] for choice in document["choices"])
    assert possible > 0
    assert impossible is None


def test_a_plan_follows_its_schema(model: Path) -> None:
    targets = (mpocompress.Truncation(keep=0.5), mpocompress.Truncation(keep=1e-9), mpocompress.Truncation(max_bond=4))
    plan = mpocompress.plan(model, truncations=targets)
    document = json.loads(plan.to_json())

    jsonschema.validate(document, schema("plan-1.json"))
    assert repr(plan) == "<PlanReport: model.pt, 2 of 3 targets possible>"
    assert mpocompress.PlanReport.from_json(plan.to_json()) == plan
    assert [bool(choice["problem"]) for choice in document["choices"]] == [False, True, False]


def test_an_overview_follows_its_schema(model: Path) -> None:
    overview = overview_of(model)
    document = json.loads(overview.to_json(indent=2))

    jsonschema.validate(document, schema("overview-1.json"))
    assert repr(overview) == "<Overview: model.pt, 38,912 of 40,480 parameters can be compressed>"
    assert mpocompress.Overview.from_json(overview.to_json()) == overview
    assert document["format"] == "mpocompress-overview"
    assert {weight["kind"] for weight in document["weights"]} == {"lstm", "linear"}


def test_every_kind_has_a_name_in_the_tables() -> None:
    kinds, sources = get_args(LayerKind), get_args(KindFrom)

    assert (set(KIND_NAMES), set(KIND_SOURCES)) == (set(kinds), set(sources))
    assert get_args(BenchKind) == (*kinds, "model")
    matrix = schema("report-1.json")["$defs"]["MatrixReport"]["properties"]
    assert (matrix["kind"]["enum"], matrix["kind_from"]["enum"]) == (list(kinds), list(sources))


def test_the_schemas_and_the_page_about_them_are_up_to_date() -> None:
    for path, text in schemas.files().items():
        assert is_current(path, text), f"{path.name}: run `make reference`"
    assert {path.name for path in schemas.files()} == {path.name for path in schemas.FOLDER.iterdir()}
    assert is_current(json_page.PAGE, json_page.page()), "docs/reference/json.md: run `make reference`"


@pytest.mark.parametrize("name", ["report-1.json", "plan-1.json", "overview-1.json", "bench-1.json"])
def test_a_schema_is_valid_and_refuses_an_empty_document(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    with pytest.raises(jsonschema.ValidationError, match="is a required property"):
        jsonschema.validate({}, schema(name))


@pytest.mark.parametrize("kind", schemas.DOCUMENTS.values())
def test_descriptions_are_of_fields(kind: type[Document]) -> None:
    declared = json_schema.schema(kind)

    assert set(json_schema.field_descriptions(kind)) | {"format", "version"} == set(declared["properties"])

"""Snapshot files: written and read back, of other settings, and all the ways in which a file can be damaged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpocompress.errors import CheckpointError, FinetuneError, FormatError, MPOCompressError, OutputError
from mpocompress.finetuning.data import Position
from mpocompress.finetuning.precision import MatmulDtypes
from mpocompress.finetuning.run_state import RunState
from mpocompress.finetuning.snapshot import RunHeader, Snapshot, checked_values, read_snapshot, write_snapshot
from mpocompress.reports.finetuning import Evaluation

SETTINGS = {"seed": "0", "data": "a list"}
TENSORS = {
    "model.weight": torch.arange(6.0).reshape(2, 3),
    "model.steps": torch.tensor(3),
    "best.weight": torch.ones(2, 3, dtype=torch.bfloat16),
    "optimizer.0.step": torch.tensor(4.0),
}
STATE = RunState(
    step=7,
    samples=21,
    elapsed_s=1.5,
    expected_steps=100,
    position=Position(number=2, taken=3),
    relative_learning_rate=0.01,
    evaluations=(Evaluation(step=0, loss=0.5), Evaluation(step=5, loss=0.25, score=0.1, training_loss=0.4)),
    loss_sum=0.75,
    loss_count=2,
    cuts=1,
    last_cut=0,
)
HEADER = RunHeader(
    tool_version="1.0",
    settings=SETTINGS,
    dtypes=MatmulDtypes(model="float32", teacher="bfloat16"),
    state=STATE,
    moved=(0,),
    is_reshuffled=True,
)
RUN = Snapshot(header=HEADER, tensors=TENSORS)


def written(folder: Path, run: Snapshot = RUN) -> Path:
    path = folder / "small.run"
    write_snapshot(run, path)
    return path


def with_state(**changes: Any) -> Snapshot:
    return replace(RUN, header=replace(HEADER, state=replace(STATE, **changes)))


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = read_snapshot(written(tmp_path), SETTINGS)

    assert run.header == HEADER
    assert run.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (run.tensors[name].dtype, run.tensors[name].tolist()) == (tensor.dtype, tensor.tolist())
    assert set(run.part("model.")) == {"steps", "weight"}


def test_tensors_that_share_memory_or_lie_across_are_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"model.a": whole, "model.b": whole, "model.c": whole.T, "model.d": whole[:, 1].expand(2, 3)}

    run = read_snapshot(written(tmp_path, replace(RUN, tensors=tensors)), SETTINGS)

    assert all(torch.equal(run.tensors[name], tensor) for name, tensor in tensors.items())


def test_an_earlier_run_is_replaced_all_or_nothing(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_snapshot(with_state(elapsed_s=math.nan), path)
    assert path.read_bytes() == before

    written(tmp_path, with_state(step=8))
    assert read_snapshot(path, SETTINGS).header.state.step == 8
    assert [file.name for file in tmp_path.iterdir()] == ["small.run"]


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_snapshot(RUN, tmp_path / "none" / "small.run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**SETTINGS, "seed": "1"},
            r"small.run: a run with another seed \(seed: 0 in the snapshot, 1 now\); a resumed run must",
        ),
        ({"seed": "0"}, r"a run with another data \(data: a list in the snapshot, none now\)"),
        ({**SETTINGS, "lr": "0.1"}, r"a run with another lr \(lr: none in the snapshot, 0.1 now\)"),
        ({}, r"a run with another seed, data \(seed: 0 in the snapshot, none now\)"),
    ],
)
def test_a_run_of_other_settings_is_refused(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        read_snapshot(written(tmp_path), settings)


def edited(path: Path, change: Callable[[dict[str, Any]], None], **tensors: Tensor) -> Path:
    """Replace the document or tensors of a file."""
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()[RunHeader.FORMAT])
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(document)
    save_file({**found, **tensors}, path, metadata={RunHeader.FORMAT: json.dumps(document)})
    return path


def deep(value: Any) -> Any:
    for _ in range(50):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    1e300,
    "text",
    [],
    {},
    [1, 2, 3],
    {"a": 1},
    deep(0),
    10**400,
)


@pytest.mark.parametrize("name", [field.name for field in fields(RunHeader)])
def test_a_field_of_another_type_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for value in VALUES:
        path.write_bytes(content)

        def change(document: dict[str, Any], value: Any = value) -> None:
            document[name] = value

        edited(path, change)
        with suppress(FormatError, FinetuneError):
            run = read_snapshot(path, SETTINGS)
            assert isinstance(getattr(run.header, name), type(getattr(HEADER, name)))
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"small.run: object missing required field `{name}`; .* The file is damaged"):
        read_snapshot(edited(path, lambda document: document.pop(name)), SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["state"].update(step=-1), "state.step: expected `int` >= 0; the document does not follow"),
        (lambda d: d["state"].update(step=True), "state.step: expected `int`, got `bool`"),
        (lambda d: d["state"].update(elapsed_s="long"), "state.elapsed_s: expected `float`, got `str`"),
        (lambda d: d["state"]["position"].update(taken=-1), "state.position.taken: expected `int` >= 0"),
        (lambda d: d["state"].update(evaluations=[]), "state.last_cut: evaluation 0 of 0"),
        (lambda d: d["state"].update(last_cut=2), "state.last_cut: evaluation 2 of 2"),
        (lambda d: d["dtypes"].update(model="int4"), "dtypes.model: expected one of float32, bfloat16"),
        (lambda d: d["state"]["evaluations"].append(3), "state.evaluations[2]: expected `object`, got `int`"),
        (
            lambda d: d["state"]["evaluations"][0].update(loss="low"),
            "state.evaluations[0].loss: expected `float | null`",
        ),
        (lambda d: d["state"]["evaluations"][0].update(loss=math.nan), "a document that is not valid JSON; NaN is not"),
        (lambda d: d.update(is_reshuffled="True"), "is_reshuffled: expected `bool`, got `str`"),
        (lambda d: d.update(version=2), "format version 2; this release reads version 1"),
        (lambda d: d.update(format="other"), "a document of another format"),
    ],
    ids=[
        "step",
        "bool",
        "time",
        "place",
        "none",
        "cut",
        "dtypes",
        "number",
        "text",
        "nan",
        "flag",
        "version",
        "format",
    ],
)
def test_a_document_that_contradicts_its_declaration_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(FormatError, match=re.escape(f"small.run: {message}")):
        read_snapshot(edited(written(tmp_path), change), SETTINGS)


@pytest.mark.parametrize("name", ["optimizer.0.step", "state.0.0.lstm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    path = edited(written(tmp_path), lambda _: None, **{name: torch.tensor(value)})
    with pytest.raises(FormatError, match="a state of the optimizer or of a layer with NaN or Inf; the run cannot be"):
        read_snapshot(path, SETTINGS)


def test_a_file_that_is_cut_or_overwritten_is_refused_wherever_that_is(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for end in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"small.run: .*; there is no run to resume"):
            read_snapshot(path, SETTINGS)
    generator = torch.Generator().manual_seed(0)
    path.write_bytes(bytes(torch.randint(256, (500,), generator=generator).tolist()))
    with pytest.raises(CheckpointError):
        read_snapshot(path, SETTINGS)
    for place in torch.randint(len(content), (150,), generator=generator).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with suppress(MPOCompressError):
            read_snapshot(path, SETTINGS)


def test_a_file_without_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.run"
    with pytest.raises(CheckpointError, match=r"small.run: no such file; there is no run to resume"):
        read_snapshot(path, SETTINGS)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(FormatError, match="a safetensors file without a run; the meaning of its tensors"):
        read_snapshot(path, SETTINGS)
    save_file({"a": torch.ones(2)}, path, metadata={RunHeader.FORMAT: "{"})
    with pytest.raises(FormatError, match="a document that is not valid JSON"):
        read_snapshot(path, SETTINGS)
    save_file({"a": torch.ones(2)}, path, metadata={RunHeader.FORMAT: "[" * 5000})
    with pytest.raises(FormatError, match="a document that is not valid JSON"):
        read_snapshot(path, SETTINGS)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError):
        read_snapshot(path, SETTINGS)


MASK = torch.full((2, 2), -math.inf)
OF_MODEL = {"weight": torch.ones(2, 3), "mask": MASK}


@pytest.mark.parametrize(
    ("values", "different"),
    [
        ({"weight": torch.ones(2, 3)}, "mask"),
        ({**OF_MODEL, "more": torch.ones(2)}, "more"),
        ({**OF_MODEL, "weight": torch.ones(3, 2)}, "weight"),
        ({**OF_MODEL, "weight": torch.ones(2, 3).double()}, "weight"),
    ],
)
def test_values_of_another_model_are_refused(values: dict[str, Tensor], different: str) -> None:
    with pytest.raises(
        FormatError, match=rf"small.run: {different}, which is missing on one side, or has another shape or dtype"
    ):
        checked_values(values, OF_MODEL, "folder/small.run")


def test_values_that_are_not_finite_are_refused_outside_of_masks(tmp_path: Path) -> None:
    """A mask of minus infinity is a buffer of many models."""
    path = written(tmp_path, replace(RUN, tensors={f"model.{name}": tensor for name, tensor in OF_MODEL.items()}))
    values = read_snapshot(path, SETTINGS).part("model.")

    checked_values(values, OF_MODEL, str(path))
    for value in (math.nan, math.inf):
        with pytest.raises(FormatError, match=r"small.run: weight, with values that are NaN or Inf"):
            checked_values({**values, "weight": torch.full((2, 3), value)}, OF_MODEL, str(path))

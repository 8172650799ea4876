"""A run on disk: written and read back, of other settings, and every way in which a file can be no run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
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
from mpocompress.finetuning.snapshot import FORMAT, Snapshot, checked_values, read_snapshot, write_snapshot
from mpocompress.reports.finetuning import Evaluation

SETTINGS = {"seed": "0", "data": "a list"}
TENSORS = {
    "model.weight": torch.arange(6.0).reshape(2, 3),
    "model.steps": torch.tensor(3),
    "best.weight": torch.ones(2, 3, dtype=torch.bfloat16),
    "optimizer.0.step": torch.tensor(4.0),
}
RUN = Snapshot(
    settings=SETTINGS,
    dtypes=MatmulDtypes(model="float32", teacher="bfloat16"),
    state=RunState(
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
    ),
    moved=(0,),
    is_reshuffled=True,
    tensors=TENSORS,
)


def written(folder: Path, run: Snapshot = RUN) -> Path:
    path = folder / "small.run"
    write_snapshot(run, path)
    return path


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_snapshot(written(tmp_path), SETTINGS)

    for name in Snapshot.__slots__:
        if name != "tensors":
            assert getattr(found, name) == getattr(RUN, name), name
    assert found.tensors.keys() == TENSORS.keys()
    for name, one in TENSORS.items():
        assert (found.tensors[name].dtype, found.tensors[name].tolist()) == (one.dtype, one.tolist())
    assert set(found.part("model.")) == {"steps", "weight"}


def test_tensors_that_share_memory_or_lie_across_are_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"model.a": whole, "model.b": whole, "model.c": whole.T, "model.d": whole[:, 1].expand(2, 3)}

    found = read_snapshot(written(tmp_path, replace(RUN, tensors=tensors)), SETTINGS)

    assert all(torch.equal(found.tensors[name], one) for name, one in tensors.items())


def test_an_earlier_run_is_replaced_all_or_nothing(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_snapshot(replace(RUN, state=replace(RUN.state, elapsed_s=math.nan)), path)
    assert path.read_bytes() == before

    written(tmp_path, replace(RUN, state=replace(RUN.state, step=8)))
    assert read_snapshot(path, SETTINGS).state.step == 8
    assert [one.name for one in tmp_path.iterdir()] == ["small.run"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_snapshot(RUN, tmp_path / "none" / "small.run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "seed": "1"}, r"small.run: a run with another seed \(seed: 0 there, 1 now\); what goes on"),
        ({"seed": "0"}, r"a run with another data \(data: a list there, none now\)"),
        ({**SETTINGS, "lr": "0.1"}, r"a run with another lr \(lr: none there, 0.1 now\)"),
        ({}, r"a run with another seed, data \(seed: 0 there, none now\)"),
    ],
)
def test_a_run_of_other_settings_is_refused(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        read_snapshot(written(tmp_path), settings)


def edited(path: Path, change: Callable[[dict[str, Any]], None], **tensors: Tensor) -> Path:
    """The file with another document or other tensors."""
    with safe_open(path, framework="pt") as held:
        document = json.loads(held.metadata()[FORMAT])
        found = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    change(document)
    save_file({**found, **tensors}, path, metadata={FORMAT: json.dumps(document)})
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
    math.nan,
    math.inf,
    1e300,
    "text",
    [],
    {},
    [1, 2, 3],
    {"a": 1},
    deep(0),
    10**400,
)


@pytest.mark.parametrize("name", [one for one in Snapshot.__slots__ if one != "tensors"])
def test_a_document_of_other_types_is_read_as_damaged_or_not_at_all(tmp_path: Path, name: str) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for value in VALUES:
        path.write_bytes(content)

        def change(document: dict[str, Any], value: Any = value) -> None:
            document[name] = value

        edited(path, change)
        try:
            found: Snapshot | None = read_snapshot(path, SETTINGS)
        except MPOCompressError as error:
            refused = error.where
            found = None
        if found is None:
            assert refused == path.name
            continue
        kept = getattr(found, name)
        assert isinstance(kept, type(getattr(RUN, name)))
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"small.run: no usable '{name}'; the run is not whole. The file is damaged"):
        read_snapshot(edited(path, lambda document: document.pop(name)), SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["state"].update(step=-1), "no usable counts; the run is not whole"),
        (lambda d: d["state"].update(step=True), "no usable step: True is not int"),
        (lambda d: d["state"].update(elapsed_s="long"), "no usable elapsed_s: 'long' is not float"),
        (lambda d: d["state"]["position"].update(taken=-1), "no usable counts"),
        (lambda d: d["state"].update(evaluations=[]), "no usable counts"),
        (lambda d: d["state"].update(last_cut=2), "no usable counts"),
        (lambda d: d["dtypes"].update(model="int4"), "no usable dtypes"),
        (lambda d: d["state"]["evaluations"].append(3), "no usable evaluation: 3 is no object"),
        (lambda d: d["state"]["evaluations"][0].update(loss="low"), "no usable loss: 'low' is not float | None"),
        (lambda d: d["state"]["evaluations"][0].update(loss=math.nan), "no usable loss: nan"),
        (lambda d: d.update(version=2), "format version 2; this release reads version 1"),
        (lambda d: d.update(format="other"), "a document of another format"),
    ],
    ids=["step", "bool", "time", "place", "none", "cut", "dtypes", "number", "text", "nan", "version", "format"],
)
def test_a_document_that_does_not_hold_together_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(FormatError, match=f"small.run: {message}".replace("|", r"\|")):
        read_snapshot(edited(written(tmp_path), change), SETTINGS)


@pytest.mark.parametrize("name", ["optimizer.0.step", "state.0.0.lstm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    path = edited(written(tmp_path), lambda _: None, **{name: torch.tensor(value)})
    with pytest.raises(FormatError, match="values that are NaN or Inf; the run is not whole"):
        read_snapshot(path, SETTINGS)


def test_a_file_that_is_cut_or_overwritten_is_refused_wherever_that_is(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for end in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"small.run: .*; there is no run to go on with"):
            read_snapshot(path, SETTINGS)
    generator = torch.Generator().manual_seed(0)
    path.write_bytes(bytes(torch.randint(256, (500,), generator=generator).tolist()))
    with pytest.raises(CheckpointError):
        read_snapshot(path, SETTINGS)
    for place in torch.randint(len(content), (150,), generator=generator).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with suppress(MPOCompressError):
            read_snapshot(path, SETTINGS)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.run"
    with pytest.raises(CheckpointError, match=r"small.run: no such file; there is no run to go on with"):
        read_snapshot(path, SETTINGS)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(FormatError, match="a safetensors file without a run; it is not known what"):
        read_snapshot(path, SETTINGS)
    save_file({"a": torch.ones(2)}, path, metadata={FORMAT: "{"})
    with pytest.raises(FormatError, match="a document that is not JSON"):
        read_snapshot(path, SETTINGS)
    save_file({"a": torch.ones(2)}, path, metadata={FORMAT: "[" * 5000})
    with pytest.raises(FormatError, match="a document that is not JSON"):
        read_snapshot(path, SETTINGS)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError):
        read_snapshot(path, SETTINGS)


MASK = torch.full((2, 2), -math.inf)
OF_MODEL = {"weight": torch.ones(2, 3), "mask": MASK}


@pytest.mark.parametrize(
    ("found", "odd"),
    [
        ({"weight": torch.ones(2, 3)}, "mask"),
        ({**OF_MODEL, "more": torch.ones(2)}, "more"),
        ({**OF_MODEL, "weight": torch.ones(3, 2)}, "weight"),
        ({**OF_MODEL, "weight": torch.ones(2, 3).double()}, "weight"),
    ],
)
def test_values_of_another_model_are_refused(found: dict[str, Tensor], odd: str) -> None:
    with pytest.raises(FormatError, match=rf"small.run: {odd}, on one side only or of another shape or dtype"):
        checked_values(found, OF_MODEL, "folder/small.run")


def test_values_that_are_not_finite_are_those_of_a_mask_or_refused(tmp_path: Path) -> None:
    """A mask of minus infinity is a buffer of many models."""
    path = written(tmp_path, replace(RUN, tensors={f"model.{name}": one for name, one in OF_MODEL.items()}))
    found = read_snapshot(path, SETTINGS).part("model.")

    checked_values(found, OF_MODEL, str(path))
    for value in (math.nan, math.inf):
        with pytest.raises(FormatError, match=r"small.run: weight, with values that are NaN or Inf"):
            checked_values({**found, "weight": torch.full((2, 3), value)}, OF_MODEL, str(path))

"""A calibration in a file: read back as it was, written all or nothing, and refused when it was edited."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpocompress.calibration.calibrate import calibrate, calibration_for
from mpocompress.calibration.calibration import Calibration, Point
from mpocompress.calibration.calibration_file import CalibrationHeader, read_calibration, write_calibration
from mpocompress.calibration.options import CalibrationInputs
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.compress import compress
from mpocompress.errors import (
    CalibrationError,
    CheckpointError,
    FormatError,
    ModelError,
    OutputError,
    OutputExistsError,
)
from mpocompress.layers.selection import Selection
from mpocompress.planning.targets import Truncation
from tests.calibration.trial_models import inputs, numbers, saved, seeded, two_layers

SMALL = Selection(min_side=8)
KEEP = Truncation(keep=0.5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tmp_path, seeded(two_layers))


@pytest.fixture
def calibration(source: Path) -> Calibration:
    measured = calibrate(source, inputs(), seeded(two_layers))
    for bond in (1, 3):
        point = Point(matrix="0.weight", sites="low rank", bond=bond, divergence=0.25 / bond)
        measured.points[point.key] = point
    return measured


def test_what_is_read_is_what_was_written(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "saved.safetensors"
    write_calibration(calibration, path)
    loaded = read_calibration(path)

    for field in ("sha256", "units", "uncalibrated", "kind", "measure", "kind_from", "samples", "points"):
        assert getattr(loaded, field) == getattr(calibration, field), field
    assert (loaded.trial_model, loaded.notes) == (None, ())
    for unit in calibration.units:
        metric, original = loaded.metrics[unit.name], calibration.metrics[unit.name]
        assert metric.second.equal(original.second)
        assert metric.mean.equal(original.mean)
        assert metric.outputs.moment.equal(original.outputs.moment)
        assert metric.count == original.count


def test_it_is_written_the_same_every_time_and_leaves_nothing_beside_it(
    tmp_path: Path, calibration: Calibration
) -> None:
    first, second, third = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "third"))
    write_calibration(calibration, first)
    write_calibration(calibration, second)
    write_calibration(read_calibration(first), third)

    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", first.name, second.name, third.name}


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "saved.safetensors"
    path.write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"saved\.safetensors: writing failed \(No space left on device\); "):
        write_calibration(calibration, path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_permissions_are_those_of_a_new_file_and_a_link_stays(tmp_path: Path, calibration: Calibration) -> None:
    path, link = tmp_path / "saved.safetensors", tmp_path / "link.safetensors"
    path.write_bytes(b"old")
    link.symlink_to(path)
    (tmp_path / "new").touch()
    write_calibration(calibration, link, overwrite=True)

    assert link.is_symlink()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
    assert read_calibration(path).samples == calibration.samples


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "saved.pt",
            OutputError,
            r"saved\.pt: a name that does not end in \.safetensors; .* Call it saved\.safetensors\.",
        ),
        (
            "no/saved.safetensors",
            OutputError,
            r"saved\.safetensors: its folder does not exist; .* Create the folder first\.",
        ),
        (
            "there.safetensors",
            OutputExistsError,
            r"there\.safetensors: the file exists; existing files are not replaced by default\.",
        ),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_the_work(
    tmp_path: Path, source: Path, name: str, kind: type[Exception], message: str
) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    with pytest.raises(kind, match=message):
        compress(
            source, tmp_path / "small.pt", truncation=KEEP, calibration=[], save_calibration=tmp_path / name, model="x"
        )
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"


def test_a_folder_is_never_replaced(tmp_path: Path, calibration: Calibration) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputExistsError, match=r"folder\.safetensors: the file exists"):
        write_calibration(calibration, tmp_path / "folder.safetensors", overwrite=True)


@pytest.mark.parametrize("place", ["source", "target"])
def test_it_is_never_saved_in_the_place_of_a_checkpoint(tmp_path: Path, place: str) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file(seeded(two_layers).state_dict(), source)
    before = source.read_bytes()
    with pytest.raises(
        OutputError,
        match=rf"{place}\.safetensors: the file of the checkpoint or of the output; one file would replace the other\. "
        r"Choose another file for the calibration\.",
    ):
        compress(
            source,
            target,
            truncation=KEEP,
            selection=SMALL,
            model=seeded(two_layers),
            calibration=inputs(),
            save_calibration=tmp_path / f"{place}.safetensors",
            overwrite=True,
        )
    assert source.read_bytes() == before
    assert not target.exists()


def edited(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    with safe_open(path, framework="pt") as held:
        document = json.loads(held.metadata()[CalibrationHeader.FORMAT])
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - not a mapping
    change(document, tensors)
    save_file(tensors, path, metadata={CalibrationHeader.FORMAT: json.dumps(document)})


def group(**fields: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda document, _: document["weight_groups"][0].update(fields)


def point(**fields: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda document, _: document["points"][0].update(fields)


def field(**fields: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda document, _: document.update(fields)


def tensor(name: str, value: Tensor | None) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors[name]
        tensors.update({} if value is None else {name: value})

    return change


EYE = torch.eye(12, dtype=torch.float64)
DAMAGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], None], str]] = {
    "no second": (tensor("0.second", None), "no valid tensor 0.second for 0.weight"),
    "no mean": (tensor("1.mean", None), "no valid tensor 1.mean for 2.weight"),
    "other shape": (tensor("0.second", EYE[:3]), "no valid tensor 0.second for 0.weight"),
    "other dtype": (tensor("0.second", EYE.float()), "no valid tensor 0.second for 0.weight"),
    "nan": (tensor("0.second", EYE * torch.nan), "no valid tensor 0.second for 0.weight"),
    "inf": (tensor("0.mean", torch.full((12,), torch.inf).double()), "no valid tensor 0.mean for 0.weight"),
    "zero outputs": (tensor("0.outputs", torch.zeros(16).double()), "tensor 0.outputs for 0.weight without a positive"),
    "negative outputs": (tensor("0.outputs", -torch.ones(16).double()), "tensor 0.outputs for 0.weight without a"),
    "no members": (group(members=[], columns=[]), "weight_groups[0].members: expected `array` of length >= 1"),
    "more members": (group(members=["0.weight", "2.weight"]), "weight_groups[0]: 2 members with 1 columns"),
    "no columns": (group(columns=[0]), "weight_groups[0].columns[0]: expected `int` >= 1"),
    "columns below 0": (group(members=["0.weight", "2.weight"], columns=[14, -2]), "weight_groups[0].columns[1]: "),
    "columns of text": (group(columns="12"), "weight_groups[0].columns: expected `array`, got `str`"),
    "rows": (group(rows=3), "no valid tensor 0.outputs for 0.weight"),
    "count": (field(counts=[0, 1]), "counts[0]: expected `int` >= 1"),
    "count of text": (field(counts=["many", 1]), "counts[0]: expected `int`, got `str`"),
    "counts": (field(counts=[1]), "2 weight groups with 1 counts"),
    "groups": (field(weight_groups=3), "weight_groups: expected `array`, got `int`"),
    "a group": (field(weight_groups=[3]), "weight_groups[0]: expected `object`, got `int`"),
    "points": (field(points=[None]), "points[0]: expected `object`, got `null`"),
    "bond": (point(bond=0), "points[0].bond: expected `int` >= 1"),
    "divergence": (point(divergence=-1.0), "points[0].divergence: expected `float` >= 0.0"),
    "uncalibrated": (field(uncalibrated={"a": 1}), "uncalibrated[...]: expected `str`, got `int`"),
    "kind": (field(kind="poetry"), "kind: invalid enum value 'poetry'"),
    "sha": (field(sha256=None), "sha256: expected `str`, got `null`"),
    "samples": (field(samples=1.5), "samples: expected `int`, got `float`"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_was_edited_is_refused(tmp_path: Path, calibration: Calibration, name: str) -> None:
    change, problem = DAMAGES[name]
    path = tmp_path / "saved.safetensors"
    write_calibration(calibration, path)
    edited(path, change)

    with pytest.raises(
        FormatError,
        match=rf"saved\.safetensors: {re.escape(problem)}.*; .*\. The file is damaged or was edited: calibrate again\.",
    ):
        read_calibration(path)


def test_any_field_may_be_missing_and_is_named(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "saved.safetensors"
    for name in (
        "weight_groups",
        "counts",
        "points",
        "sha256",
        "uncalibrated",
        "kind",
        "measure",
        "kind_from",
        "samples",
    ):
        write_calibration(calibration, path, overwrite=True)
        edited(path, lambda document, _, name=name: document.pop(name))  # type: ignore[misc]
        with pytest.raises(FormatError, match=f"object missing required field `{name}`"):
            read_calibration(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (group(columns=[6, 6], members=["0.weight", "x"]), r"moments of 0\.weight for 6 x 16 entries"),
        (group(members=["other"]), r"moments of other for 12 x 16 entries"),
        (group(bias="0.weight"), r"moments of 0\.weight for 16 entries"),
    ],
)
def test_moments_that_do_not_fit_the_weights_are_refused(
    tmp_path: Path, source: Path, calibration: Calibration, change: Any, message: str
) -> None:
    path = tmp_path / "saved.safetensors"
    write_calibration(calibration, path)
    edited(path, change)

    with pytest.raises(
        FormatError,
        match=rf"calibration: {message}; the checkpoint has no tensor with this name and shape\. The file is ",
    ):
        compress(source, tmp_path / "small.pt", truncation=KEEP, selection=SMALL, calibration=path)


def test_files_of_other_kinds_are_refused(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "saved.safetensors"
    write_calibration(calibration, path)
    for fields, message in (
        ({"version": 2}, r"format version 2; this release reads version 1\. Upgrade mpocompress"),
        (
            {"format": "mpocompress"},
            "a document of another format; the format must be 'mpocompress-calibration'",
        ),
    ):
        edited(path, field(**fields))
        with pytest.raises(FormatError, match=message):
            read_calibration(path)
    save_file({"a": torch.zeros(1)}, path, metadata={CalibrationHeader.FORMAT: "{"})
    with pytest.raises(FormatError, match="a document that is not valid JSON"):
        read_calibration(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(FormatError, match=r"a safetensors file without a calibration; .* saved when calibrating\."):
        read_calibration(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"saved\.safetensors: .*; the file cannot be read\. Pass a file that"):
        read_calibration(path)
    with pytest.raises(CheckpointError, match="the file cannot be read"):
        read_calibration(tmp_path / "missing.safetensors")


def test_it_is_for_one_checkpoint(tmp_path: Path, calibration: Calibration) -> None:
    other = tmp_path / "other.pt"
    torch.save({"0.weight": numbers(16, 12)}, other)
    for source in (calibration, tmp_path / "saved.safetensors"):
        if isinstance(source, Path):
            write_calibration(calibration, source)
        with (
            open_checkpoint(other) as checkpoint,
            pytest.raises(
                CalibrationError,
                match=r"calibration: a calibration that was made with other weights than those of other\.pt; "
                r"the inputs of a weight depend on all other weights\. Calibrate again with this checkpoint\.",
            ),
        ):
            calibration_for(source, None, checkpoint)


@pytest.mark.parametrize("model", [None, {"0": "torch.nn.Linear"}])
def test_inputs_without_a_model_are_refused(source: Path, model: Any) -> None:
    with (
        open_checkpoint(source) as checkpoint,
        pytest.raises(
            ModelError,
            match=r"calibration: no model that can be run; the inputs of its layers are measured by running it\. Give "
            r"the model as a module, or name it, or a function that builds it, as file\.py:name\.",
        ),
    ):
        calibration_for(inputs(), model, checkpoint)


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        CalibrationError,
        match=r"kind: got 'poetry'; it must be one of classification, embedding, regression\. Pass such a value\.",
    ):
        CalibrationInputs(batches=[], kind="poetry")  # type: ignore[arg-type]


def test_the_repr_shows_no_moments(calibration: Calibration) -> None:
    assert (
        repr(calibration)
        == f"Calibration(kind={calibration.kind!r}, samples={calibration.samples}, weights={len(calibration.units)})"
    )


def test_a_string_never_means_a_calibration_file(tmp_path: Path, source: Path) -> None:
    with pytest.raises(
        CalibrationError,
        match=r"calibration: the string 'saved\.safetensors'; a string names code to import and run, and a calibration "
        r"file is passed as a path object\. Pass pathlib\.Path\('saved\.safetensors'\)\.$",
    ):
        compress(source, tmp_path / "small.pt", truncation=KEEP, calibration="saved.safetensors")

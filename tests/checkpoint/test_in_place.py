"""`expand` in the form of the original: the same file, other values, nothing run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mpocompress
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.checkpoint.writing.in_place import write_replaced
from mpocompress.errors import OutputError
from tests.checkpoint.files import assert_same, contents, rezip, state_dict
from tests.checkpoint.test_torch_forms import Net, forgotten, net, swapped

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)


def _others(path: Path) -> dict[str, torch.Tensor]:
    """Other values for every tensor of a file."""
    generator = torch.Generator().manual_seed(1)
    with open_checkpoint(path) as checkpoint:
        return {
            info.name: torch.rand(info.shape, generator=generator).mul(100).to(torch_dtype(info.dtype))
            for info in checkpoint.own_tensors
        }


def _rewritten(path: Path, target: Path) -> dict[str, torch.Tensor]:
    tensors = _others(path)
    with open_checkpoint(path) as original:
        size = write_replaced(target, original=original, tensors=tensors, overwrite=False, inputs=[])
    assert size == path.stat().st_size == target.stat().st_size
    return tensors


def _legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def _views() -> dict[str, torch.Tensor]:
    memory = torch.arange(54.0)
    return {"a": memory[:24].view(6, 4), "b": memory[24:].view(5, 6).t(), "odd": torch.ones(3, dtype=torch.int8)}


FORMS: dict[str, Callable[[Path], None]] = {
    "zip": lambda path: torch.save({"epoch": 3, "model": state_dict()}, path),
    "views": lambda path: torch.save(_views(), path),
    "views, legacy": lambda path: _legacy(_views(), path),
    "legacy": lambda path: _legacy({"epoch": 3, "model": state_dict()}, path),
    "safetensors": lambda path: save_file(state_dict(), path, {"by": "us"}),
    "scripted": lambda path: torch.jit.save(torch.jit.script(net()), path),
    "exported": lambda path: torch.export.save(torch.export.export(net(), (torch.ones(2, 1, 4),)), path),
    "module": lambda path: torch.save(net(), path),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_replaced_where_it_lies(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "model.pt")
    tensors = _rewritten(tmp_path / "model.pt", tmp_path / "out.pt")
    with open_checkpoint(tmp_path / "out.pt") as checkpoint:  # verifies the checksums
        actual = contents(checkpoint)
        assert_same({name: actual[name] for name in tensors}, tensors)


@pytest.mark.parametrize("form", ["zip", "views", "scripted", "exported", "module"])
def test_the_checksums_are_right_for_everyone(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "model.pt")
    _rewritten(tmp_path / "model.pt", tmp_path / "out.pt")
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None


def test_the_owners_load_what_comes_back(tmp_path: Path) -> None:
    expected = {}
    for form in ("views", "scripted", "exported", "module", "legacy", "safetensors"):
        FORMS[form](tmp_path / form)
        expected[form] = _rewritten(tmp_path / form, tmp_path / f"{form}.out")
    assert_same(torch.load(tmp_path / "views.out", weights_only=True), expected["views"])
    scripted = torch.jit.load(tmp_path / "scripted.out").state_dict()  # type: ignore[no-untyped-call]
    assert torch.equal(scripted["blocks.0.weight"], expected["scripted"]["blocks.0.weight"])
    exported = torch.export.load(tmp_path / "exported.out").state_dict
    assert torch.equal(exported["lstm.weight_hh_l1"], expected["exported"]["lstm.weight_hh_l1"])
    module = torch.load(tmp_path / "module.out", weights_only=False)
    assert isinstance(module, Net)
    assert_same(dict(module.state_dict()), contents(open_checkpoint(tmp_path / "module.out")))
    assert module.tied is module.blocks[0]
    assert torch.load(tmp_path / "legacy.out", weights_only=True)["epoch"] == 3
    assert_same(load_file(tmp_path / "safetensors.out"), expected["safetensors"])


def test_bytes_of_the_other_order_stay_in_it(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3, 2), "z": torch.tensor([1 + 2j])}, tmp_path / "little.pt")
    rezip(tmp_path / "little.pt", tmp_path / "half.pt", lambda data: swapped(data, 4), record="data/0")
    rezip(tmp_path / "half.pt", tmp_path / "half2.pt", lambda data: swapped(data, 4), record="data/1")
    rezip(tmp_path / "half2.pt", tmp_path / "model.pt", lambda _: b"big", record="byteorder")
    tensors = _rewritten(tmp_path / "model.pt", tmp_path / "out.pt")
    with open_checkpoint(tmp_path / "out.pt") as checkpoint:
        assert_same(contents(checkpoint), tensors)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("fc.bias"), "fc.bias is in it but not in the compressed file"),
        (lambda tensors: tensors.update(x=torch.ones(1)), "x is in the compressed file but not in it"),
        (
            lambda tensors: tensors.update({"fc.bias": torch.ones(7)}),
            r"fc\.bias is \(6,\) float32 in it but \(7,\)",
        ),
        (
            lambda tensors: tensors.update({"fc.bias": torch.ones(6).half()}),
            r"but \(6,\) float16 in the compressed file",
        ),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_another_file_is_refused_and_nothing_is_written(
    edit: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    torch.save(state_dict(), tmp_path / "model.pt")
    tensors = state_dict()
    edit(tensors)
    with open_checkpoint(tmp_path / "model.pt") as original, pytest.raises(OutputError, match=message):
        write_replaced(tmp_path / "out.pt", original=original, tensors=tensors, overwrite=False, inputs=[])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_form_that_cannot_be_written_back_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(state_dict()))
    with open_checkpoint(tmp_path / "model.pkl") as original, pytest.raises(OutputError, match="a file of form pickle"):
        write_replaced(tmp_path / "out", original=original, tensors=state_dict(), overwrite=False, inputs=[])


def test_the_original_is_never_written_to(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()
    with open_checkpoint(tmp_path / "model.pt") as original, pytest.raises(OutputError, match="is a file being read"):
        write_replaced(tmp_path / "model.pt", original=original, tensors=state_dict(), overwrite=True, inputs=[])
    assert (tmp_path / "model.pt").read_bytes() == before


def test_a_module_whose_class_is_gone_goes_there_and_back(tmp_path: Path) -> None:
    path, small, back = tmp_path / "model.pt", tmp_path / "small.pt", tmp_path / "back.pt"

    def save(model: Net) -> None:
        model.big = torch.nn.Linear(96, 80)
        torch.save({"model": model, "epoch": 3}, path)

    expected = forgotten(save)
    report = mpocompress.compress(path, small, truncation=mpocompress.Truncation(max_bond=8))
    assert [matrix.name for matrix in report.compressed] == ["model.big.weight".removeprefix("model.")]
    mpocompress.expand(small, back, like=path)
    mpocompress.expand(small, tmp_path / "dense.pt")
    with open_checkpoint(back) as whole, open_checkpoint(tmp_path / "dense.pt") as dense:
        assert whole.classes[""] == "a_module_that_is_gone.Net"
        actual = contents(whole)
        assert_same(actual, contents(dense))
        assert torch.equal(actual["lstm.weight_hh_l0"], expected["lstm.weight_hh_l0"])
        assert not torch.equal(actual["big.weight"], expected["big.weight"])


def test_an_original_that_was_changed_is_noted(tmp_path: Path) -> None:
    state = {"fc.weight": torch.randn(96, 80), "fc.bias": torch.zeros(96)}
    averaged = {name: tensor.clone() for name, tensor in state.items()}
    torch.save({"model": state, "ema": averaged, "epoch": 3}, tmp_path / "model.pt")
    torch.save({"model": state, "ema": averaged, "epoch": 4}, tmp_path / "later.pt")
    mpocompress.compress(tmp_path / "model.pt", tmp_path / "small.pt", truncation=mpocompress.Truncation(max_bond=8))
    report = mpocompress.expand(tmp_path / "small.pt", tmp_path / "back.pt", like=tmp_path / "later.pt")
    assert report.notes == (
        "later.pt differs from the file that was compressed, but its tensors match",
        "unchanged, because only the state dict is replaced: ema",
    )


@pytest.mark.parametrize("view", [lambda w: w[:3], lambda w: w.T], ids=["rows", "transposed"])
def test_tensors_that_share_memory_are_not_written_over_each_other(
    view: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    weight = torch.randn(6, 4)
    torch.save({"a": weight, "b": view(weight)}, tmp_path / "model.pt")
    tensors = _others(tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as original:
        assert original.notes == ("a and b share memory in part: in the new file each has its own",)
        with pytest.raises(OutputError, match="a and b share memory in it; new values of one would overwrite"):
            write_replaced(tmp_path / "out.pt", original=original, tensors=tensors, overwrite=False, inputs=[])


def test_a_tie_that_only_the_original_has_is_refused(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    torch.save({"a": weight, "b": weight}, tmp_path / "model.pt")
    with (
        open_checkpoint(tmp_path / "model.pt") as original,
        pytest.raises(OutputError, match="b is tied to a in it only"),
    ):
        write_replaced(
            tmp_path / "out.pt", original=original, tensors={"a": weight, "b": -weight}, overwrite=False, inputs=[]
        )


def test_a_repeated_tensor_is_written_once(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2), "mask": torch.zeros(3, 1).expand(3, 100)}, tmp_path / "model.pt")
    tensors = {"w": torch.zeros(2, 2), "mask": torch.arange(3.0).reshape(3, 1).expand(3, 100)}
    with open_checkpoint(tmp_path / "model.pt") as original:
        write_replaced(tmp_path / "out.pt", original=original, tensors=tensors, overwrite=False, inputs=[])
    assert_same(torch.load(tmp_path / "out.pt", weights_only=True), tensors)

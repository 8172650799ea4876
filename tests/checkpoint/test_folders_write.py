"""Folders of models, written: what is in them, what is carried over, and that it is all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mpocompress import Report, Selection, Truncation, compress, expand
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.folders import writer as folder_writer
from mpocompress.checkpoint.output import FOLDER, container_for
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing import writer
from mpocompress.errors import CheckpointError, FormatError, OutputError, OutputExistsError
from tests.checkpoint.files import assert_same, contents
from tests.checkpoint.folders import edit_index, make_folder, split, tree, weight_map, weights
from tests.inspecting import report_in

BOND = Truncation(max_bond=4)
JOINT = {"lstm.weight_hh_l0", "lstm.weight_ih_l0"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model in three shards."""
    folder = make_folder(tmp_path / "model", split(weights(), 3))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    torch.save({"lr": 1}, folder / "optimizer.pt")
    return folder


def small(model: Path) -> Report:
    return compress(model, model.with_name("small"), truncation=BOND)


def members(report: Report) -> set[str]:
    return {member for matrix in report.compressed for member in matrix.members}


def test_shards_stay_shards_and_their_weights_stay_in_them(model: Path, tmp_path: Path) -> None:
    report = small(model)

    assert set(tree(tmp_path / "small")) == {
        *(f"model-0000{n}-of-00003.mpo.safetensors" for n in (1, 2, 3)),
        "model.mpo.safetensors.index.json",
        "config.json",
        "tokenizer.json",
    }
    before, after = weight_map(model), weight_map(tmp_path / "small")
    for name, shard in after.items():
        matrix = next((m for m in report.compressed if name.startswith(m.name + ".core.")), None)
        assert shard == before[matrix.members[0] if matrix else name].replace(".safetensors", ".mpo.safetensors")
    stored = {
        name: tensor for file in (tmp_path / "small").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    assert stored.keys() == after.keys()
    assert_same({n: t for n, t in stored.items() if n in before}, {n: weights()[n] for n in before if n in stored})
    metadata = json.loads((tmp_path / "small" / "model.mpo.safetensors.index.json").read_text())["metadata"]
    assert metadata["total_size"] == sum(t.numel() * t.element_size() for t in stored.values())
    assert Report.from_json(metadata["mpocompress"]).totals.file_size_bytes_after is None


@pytest.mark.parametrize(("ending", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3)])
def test_there_and_back_gives_the_names_that_loaders_know(ending: str, shards: int, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", split(weights(), shards), ending=ending)
    usual = make_folder(tmp_path / "usual", split(weights(), shards))

    report = compress(folder, tmp_path / "small", truncation=BOND)
    expand(tmp_path / "small", tmp_path / "dense")

    assert set(tree(tmp_path / "dense")) == set(tree(usual))
    assert members(report) >= JOINT
    files = sorted((tmp_path / "dense").glob("*.safetensors"))
    assert_same(
        {name: tensor for file in files for name, tensor in load_file(file).items() if name not in members(report)},
        {name: tensor for name, tensor in weights().items() if name not in members(report)},
    )
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["format"] == "pt"
    if shards > 1:
        assert weight_map(tmp_path / "dense").keys() == weights().keys()
        index = json.loads((tmp_path / "dense" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in weights().values())
    with open_checkpoint(tmp_path / "dense") as checkpoint:
        for matrix in report.compressed:
            original = torch.cat([weights()[name] for name in matrix.members], dim=1)
            actual = torch.cat([checkpoint.tensor(name) for name in matrix.members], dim=1)
            assert float((actual - original).norm() / original.norm()) == pytest.approx(matrix.relative_error, rel=1e-4)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_and_one_file_hold_the_same(shards: int, tmp_path: Path) -> None:
    """Whatever way round: compressed into a folder or a file, expanded into a folder or a file."""
    folder = make_folder(tmp_path / "model", split(weights(), shards))
    for name in ("small", "small.pt", "small.safetensors"):
        compress(folder, tmp_path / name, truncation=BOND)
    for source, target in (
        ("small", "a"),
        ("small", "a.pt"),
        ("small", "a.safetensors"),
        ("small.pt", "b.pt"),
        ("small.safetensors", "c.safetensors"),
    ):
        expand(tmp_path / source, tmp_path / target)
    with open_checkpoint(tmp_path / "a") as checkpoint:
        expected = contents(checkpoint)
    for name in ("a.pt", "a.safetensors", "b.pt", "c.safetensors"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert_same(contents(checkpoint), expected)


@pytest.mark.parametrize("shards", [1, 2])
def test_tied_names_are_kept_and_written_out_for_loaders(shards: int, tmp_path: Path) -> None:
    state = weights()
    state["head.weight"] = state["fc.weight"]  # compressed
    state["norm"] = state["fc.bias"]  # not compressed
    parts = split({name: state[name] for name in sorted(state)}, 1)
    if shards == 2:
        first = {name: state[name] for name in JOINT}
        parts = [first, {name: tensor for name, tensor in parts[0].items() if name not in first}]
    folder = make_folder(tmp_path / "model", parts, ending="bin")

    report = compress(folder, tmp_path / "small", truncation=BOND)
    expand(tmp_path / "small", tmp_path / "dense")

    assert report.aliases == {"head.weight": "fc.weight", "norm": "fc.bias"}
    with open_checkpoint(tmp_path / "small") as checkpoint:
        assert checkpoint.tensors["norm"].alias_of == "fc.bias"
    with open_checkpoint(tmp_path / "dense") as checkpoint:
        assert set(checkpoint.tensors) == set(state)
        assert torch.equal(checkpoint.tensor("head.weight"), checkpoint.tensor("fc.weight"))
        assert torch.equal(checkpoint.tensor("norm"), state["norm"])


def test_the_files_beside_the_weights_go_along_and_the_report_says_so(model: Path, tmp_path: Path) -> None:
    report = small(model)

    assert "copied unchanged: config.json, tokenizer.json" in report.notes
    assert "not copied (only small files without weights are copied): optimizer.pt" in report.notes
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "small" / name).read_bytes() == (model / name).read_bytes()
    notes = compress(model, tmp_path / "small.pt", truncation=BOND).notes
    assert "not included in the single output file: config.json, tokenizer.json" in notes


@pytest.mark.parametrize("shards", [1, 3])
def test_inspect_of_a_folder_gives_what_compress_gave(shards: int, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", split(weights(), shards))
    report = compress(folder, tmp_path / "small", truncation=BOND)

    assert report_in(tmp_path / "small") == report
    assert report.totals.file_size_bytes_after == sum(map(len, tree(tmp_path / "small").values()))
    (named,) = (tmp_path / "small").glob("model.mpo.safetensors*")
    if shards > 1:
        assert report_in(named) == report
    assert report.source.file == "model"


def test_equal_input_gives_equal_bytes(model: Path, tmp_path: Path) -> None:
    compress(model, tmp_path / "a", truncation=BOND, jobs=1)
    compress(model, tmp_path / "b", truncation=BOND, jobs=2)
    expand(tmp_path / "a", tmp_path / "c")
    expand(tmp_path / "b", tmp_path / "d")

    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "c") == tree(tmp_path / "d")


def test_another_stem_is_kept(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "unet", split(weights(), 2), stem="diffusion_pytorch_model")
    compress(folder, tmp_path / "small", truncation=BOND)
    expand(tmp_path / "small", tmp_path / "dense")

    assert "diffusion_pytorch_model.mpo.safetensors.index.json" in tree(tmp_path / "small")
    assert set(tree(tmp_path / "dense")) == set(tree(folder))


def test_a_shard_that_becomes_empty_is_left_out(tmp_path: Path) -> None:
    state = weights()
    parts = [
        {name: t for name, t in state.items() if name != "lstm.weight_hh_l0"},
        {"lstm.weight_hh_l0": state["lstm.weight_hh_l0"]},
    ]
    folder = make_folder(tmp_path / "model", parts)
    compress(folder, tmp_path / "small", truncation=BOND)
    expand(tmp_path / "small", tmp_path / "dense")

    with open_checkpoint(tmp_path / "dense") as checkpoint:
        assert set(checkpoint.tensors) == set(state)


def test_shards_are_numbered_in_their_order(tmp_path: Path) -> None:
    """Also where a joint matrix was found by its second member, in a shard before that of the first."""
    state = weights()
    second, first = "lstm.weight_hh_l0", "lstm.weight_ih_l0"
    rest = {name: tensor for name, tensor in state.items() if name not in (first, second)}
    folder = make_folder(tmp_path / "model", [{second: state[second]}, rest, {first: state[first]}])
    compress(folder, tmp_path / "small", truncation=BOND, selection=Selection(lstm="joint"))

    places = weight_map(tmp_path / "small")
    assert places["fc.bias"] == "model-00001-of-00002.mpo.safetensors"
    assert places["lstm.weight_joint_l0.core.0"] == "model-00002-of-00002.mpo.safetensors"


def test_an_index_that_could_not_be_read_again_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)
    monkeypatch.setattr(folder_writer, "MAX_INDEX_BYTES", 1000)
    with pytest.raises(OutputError, match=r"an index of .*; an index above 1\.0 kB could not be read back") as caught:
        small(model)
    assert caught.value.where == str(tmp_path / "small" / "model.mpo.safetensors.index.json")
    assert tree(tmp_path) == before


def test_the_name_of_the_output_says_what_is_written(model: Path, tmp_path: Path) -> None:
    with open_checkpoint(model) as checkpoint:
        layout = checkpoint.layout
    (tmp_path / "v1.5").mkdir()
    folders = ["out", "Llama-3.2-1B-small", "out.x", "out.pt/", str(tmp_path / "v1.5")]
    files = ["out.pt", "Llama-3.2.BIN", "out.pth", "out.ckpt", "out.pkl", "out.th", "out.tar"]
    assert {container_for(name, layout) for name in folders} == {FOLDER}
    assert {container_for(name, layout) for name in files} == {"torch-zip"}
    assert container_for("Llama-3.2.safetensors", layout) == "safetensors"
    assert {container_for(name, None) for name in (*folders, *files)} == {"torch-zip"}


def test_a_number_after_a_dot_is_part_of_the_name_of_a_folder(model: Path, tmp_path: Path) -> None:
    compress(model, tmp_path / "Llama-3.2-1B-small", truncation=BOND)
    assert (tmp_path / "Llama-3.2-1B-small" / "config.json").is_file()
    expand(tmp_path / "Llama-3.2-1B-small", tmp_path / "Llama-3.2-1B")
    assert (tmp_path / "Llama-3.2-1B" / "config.json").is_file()


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_the_file_in_the_folder_is_known_to_be_the_original(ending: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "one", [weights()], ending=ending)
    (original,) = folder.glob(f"*.{ending}")
    compress(folder, tmp_path / "small", truncation=BOND)
    assert expand(tmp_path / "small", tmp_path / "back", like=original).notes == ()
    assert (tmp_path / "back").is_file()


def test_a_folder_of_one_file_is_closed_with_it(tmp_path: Path) -> None:
    with open_checkpoint(make_folder(tmp_path / "one", [weights()])) as checkpoint:
        assert checkpoint.tensor("steps") == 7
    with pytest.raises(CheckpointError, match="steps was requested after the file was closed"):
        checkpoint.tensor("steps")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("c", torch.ones(2, dtype=torch.complex128), "c is of type complex128; safetensors cannot hold"),
        (
            "fc\ud800.weight",
            torch.ones(64, 64),
            "a tensor named fc\\\\ud800.weight.*; safetensors cannot hold half a character",
        ),
        ("__metadata__", torch.ones(2), "a tensor named __metadata__; safetensors reserves this name"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused_before_the_work(
    name: str, value: torch.Tensor, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({**weights(), name: value}, folder / "pytorch_model.bin")
    torch_file = folder / "pytorch_model.bin"
    compress(torch_file, tmp_path / "small.pt", truncation=BOND)

    def refuse(*words: object) -> None:
        raise AssertionError("a weight was read")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "tensor", refuse)
        for source, output in ((folder, "small"), (torch_file, "small.safetensors")):
            with pytest.raises(OutputError, match=message):
                compress(source, tmp_path / output, truncation=BOND)
        with pytest.raises(OutputError, match=message):
            expand(tmp_path / "small.pt", tmp_path / "dense.safetensors")
    expand(tmp_path / "small.pt", tmp_path / "like.safetensors", like=torch_file)
    with open_checkpoint(tmp_path / "like.safetensors") as checkpoint:
        assert torch.equal(checkpoint.tensor(name), value) or name.endswith("weight")


def test_a_slash_at_the_end_asks_for_a_folder(model: Path, tmp_path: Path) -> None:
    compress(model, f"{tmp_path}/small-1.5/", truncation=BOND)
    assert report_in(tmp_path / "small-1.5").compressed


def test_a_file_without_extension_stays_a_file(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "model.pt")
    compress(tmp_path / "model.pt", tmp_path / "small", truncation=BOND)
    assert (tmp_path / "small").is_file()


def test_one_shard_of_a_compressed_folder_is_not_read_alone(model: Path, tmp_path: Path) -> None:
    small(model)
    shard = tmp_path / "small" / "model-00001-of-00003.mpo.safetensors"
    with pytest.raises(CheckpointError, match=r"one shard of a compressed folder; .* Give the folder"):
        open_checkpoint(shard)


def test_an_index_without_the_document_is_refused(model: Path, tmp_path: Path) -> None:
    small(model)
    edit_index(tmp_path / "small", metadata=None)
    with pytest.raises(FormatError, match=r"model-00001\S+ belongs to the index of a compressed folder, not this"):
        open_checkpoint(tmp_path / "small")


def test_a_tensor_added_to_a_compressed_shard_is_refused(model: Path, tmp_path: Path) -> None:
    small(model)
    shard = tmp_path / "small" / "model-00001-of-00003.mpo.safetensors"
    save_file({**load_file(shard), "extra": torch.ones(1)}, shard)
    with pytest.raises(FormatError, match=r"extra is in a shard and not in the index"):
        open_checkpoint(tmp_path / "small")


# what is at the output, and what is said of it though overwriting is asked for
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (lambda at: _file(at / "out"), r"a file; the output is a folder, as the input is"),
    "the input": (lambda at: at / "model", r"the output is the folder being read"),
    "in the input": (lambda at: at / "model" / "out", r"the output is the folder being read"),
    "a file in the input": (lambda at: at / "model" / "out.pt", r"the output is the folder being read"),
    "a link": (lambda at: _link(at / "out", at / "model"), r"the output is the folder being read"),
    "around the input": (lambda at: at, r"is being read from there; replacing the output would"),
    "not ours": (lambda at: make_folder(at / "out", [weights()]), r"a folder that was not written by mpocompress"),
    "more in it": (lambda at: _file(_written(at / "out") / "mine").parent, r"mine in it was not written"),
    "hidden in it": (lambda at: _file(_written(at / "out") / ".mine").parent, r"\.mine in it was not"),
    "folder in it": (lambda at: _in_it(_written(at / "out")), r"config\.json in it was not written"),
    "nowhere": (lambda at: at / "gone" / "out", r"no folder \S+/gone; the output has no parent folder"),
}


def _written(path: Path) -> Path:
    source = make_folder(path.with_name("other"), split(weights(), 2))
    compress(source, path, truncation=BOND)
    return path


def _file(path: Path) -> Path:
    path.write_text("mine")
    return path


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def _in_it(path: Path) -> Path:
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_an_output_is_refused_before_anything_is_touched(case: str, model: Path, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    output = make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=message) as caught:
        compress(model, output, truncation=BOND, overwrite=True)
    assert caught.value.where == str(output)
    assert tree(tmp_path) == before


def test_a_folder_is_not_replaced_unasked(model: Path, tmp_path: Path) -> None:
    _written(tmp_path / "small")
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError, match="the folder exists; an existing folder is replaced only on request"):
        small(model)
    assert tree(tmp_path) == before


def test_a_folder_whose_links_are_read_is_not_replaced(model: Path, tmp_path: Path) -> None:
    small(model)
    expand(tmp_path / "small", tmp_path / "dense")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in (tmp_path / "dense").iterdir():
        (linked / file.name).symlink_to(file)
    with pytest.raises(OutputError, match=r"is being read from there; replacing the output would remove it"):
        compress(linked, tmp_path / "dense", truncation=BOND, overwrite=True)


@pytest.mark.parametrize("shards", [1, 3])
def test_what_was_written_here_is_replaced_when_asked(shards: int, model: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", split({**weights(), "more": torch.ones(3)}, shards))
    (other / "vocab.txt").write_text("a")
    compress(other, tmp_path / "small", truncation=BOND)
    expand(tmp_path / "small", tmp_path / "dense")

    compress(model, tmp_path / "small", truncation=BOND, overwrite=True)
    expand(tmp_path / "small", tmp_path / "dense", overwrite=True)

    assert set(tree(tmp_path / "dense")) == set(tree(model)) - {"optimizer.pt"}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "other", "small", "dense"}


def test_an_empty_folder_is_filled_and_a_link_to_it_stays(model: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "small").symlink_to(tmp_path / "disk")
    small(model)
    assert (tmp_path / "small").is_symlink()
    assert report_in(tmp_path / "disk").compressed


class _Stop(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_stopped_while_writing_leaves_what_was_there(
    after: int, existing: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existing:
        _written(tmp_path / "small")
    before = tree(tmp_path)
    write, calls = writer.write_checkpoint, iter(range(100))

    def stop(*args: Any, **kwargs: Any) -> int:
        if next(calls) == after:
            raise _Stop
        return write(*args, **kwargs)

    def stop_at_the_index(*args: Any) -> int:
        raise _Stop

    monkeypatch.setattr(folder_writer, "write_checkpoint", stop)
    monkeypatch.setattr(folder_writer, "_tensor_bytes", stop_at_the_index)
    with pytest.raises(_Stop):
        compress(model, tmp_path / "small", truncation=BOND, overwrite=True)
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_put_in_place_is_put_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _written(tmp_path / "small")
    before = tree(tmp_path)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match=r"writing failed \(No space left on device\); nothing was written") as caught:
        compress(model, tmp_path / "small", truncation=BOND, overwrite=True)
    assert caught.value.where == str(tmp_path / "small")
    assert tree(tmp_path) == before


def test_a_full_disk_is_said_with_the_name_of_the_output(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"are needed and 1\.0 kB are free") as caught:
        compress(model, tmp_path / "small", truncation=BOND)
    assert caught.value.where == str(tmp_path / "small" / "model-00001-of-00003.mpo.safetensors")
    assert tree(tmp_path) == before

"""Folders of models, read: what is chosen, what comes out, and what a folder is that cannot be read."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpocompress.checkpoint.folders.shards import MAX_OPEN
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import CheckpointError
from tests.checkpoint.files import assert_same, contents
from tests.checkpoint.folders import CONFIG, edit_index, make_folder, split, weight_map, weights


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3, 7])
def test_a_folder_gives_the_tensors_of_all_its_files(ending: str, shards: int, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", split(weights(), shards), ending=ending)
    with open_checkpoint(folder) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.path == folder
        assert checkpoint.container == {"safetensors": "safetensors", "bin": "torch-zip"}[ending]
        assert checkpoint.config == CONFIG
        assert {file.name for file in checkpoint.files} == {file.name for file in folder.iterdir()}
        assert checkpoint.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
        assert (checkpoint.key, checkpoint.extras, checkpoint.notes, checkpoint.document) == ("", {}, (), None)
        digests = [
            hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.files if file.name != "config.json"
        ]
        whole = hashlib.sha256("".join(digests).encode()).hexdigest() if shards > 1 else digests[0]
        assert checkpoint.sha256() == whole


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_index_can_be_named_in_place_of_its_folder(ending: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, split(weights(), 3), ending=ending)
    (index,) = folder.glob("*.index.json")
    with open_checkpoint(index) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.config == CONFIG
        assert checkpoint.path == index


def test_a_shard_without_a_matrix_is_read(tmp_path: Path) -> None:
    state = weights()
    parts = [{"fc.weight": state["fc.weight"]}, {"steps": state["steps"]}]
    with open_checkpoint(make_folder(tmp_path, parts, ending="bin")) as checkpoint:
        assert checkpoint.tensor("steps") == 7


def test_tied_names_in_a_torch_shard_are_tied(tmp_path: Path) -> None:
    matrix = torch.randn(70, 64)
    parts = [{"fc.bias": torch.ones(70)}, {"embed.weight": matrix, "fc.weight": matrix}]
    with open_checkpoint(make_folder(tmp_path, parts, ending="bin")) as checkpoint:
        assert checkpoint.tensors["fc.weight"].alias_of == "embed.weight"
        assert torch.equal(checkpoint.tensor("fc.weight"), matrix)


def test_a_folder_without_configuration_has_an_empty_one(tmp_path: Path) -> None:
    with open_checkpoint(make_folder(tmp_path, [weights()], config=None)) as checkpoint:
        assert checkpoint.config == {}
        assert checkpoint.files == (tmp_path / "model.safetensors",)


def test_the_current_folder_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path / "my-model", [weights()]))
    with open_checkpoint(".") as checkpoint:
        assert checkpoint.path.name == "my-model"


def test_links_as_in_a_download_cache_are_followed(tmp_path: Path) -> None:
    blobs = make_folder(tmp_path / "blobs", split(weights(), 3))
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)
    with open_checkpoint(snapshot) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.layout is not None
        assert checkpoint.layout.companions == ("config.json",)


@contextmanager
def _few_open_files(more: int) -> Iterator[None]:
    """Allow only so many files more than are open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_many_shards_need_few_open_files(ending: str, tmp_path: Path) -> None:
    state = {f"layer{number:03d}.weight": torch.full((2, 2), float(number)) for number in range(200)}
    folder = make_folder(tmp_path, split(state, 200), ending=ending)
    with _few_open_files(5 * MAX_OPEN), open_checkpoint(folder) as checkpoint:
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.tensors}  # kept while shards are closed
        assert_same(tensors, state)


@pytest.mark.parametrize(
    ("others", "note"),
    [
        (["pytorch_model.bin"], "model.safetensors was read; ignored beside it: pytorch_model.bin"),
        (["training_args.bin", "optimizer.pt"], None),  # of the training run
        (["adapter.safetensors"], "model.safetensors was read; ignored beside it: adapter.safetensors"),
    ],
)
def test_the_usual_name_and_safetensors_come_first(others: list[str], note: str | None, tmp_path: Path) -> None:
    make_folder(tmp_path, [weights()])
    for name in others:
        save = save_file if name.endswith(".safetensors") else torch.save
        save({"other.weight": torch.ones(2, 2)}, tmp_path / name)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.notes == (() if note is None else (note,))


def test_a_usual_torch_file_comes_before_unusual_safetensors(tmp_path: Path) -> None:
    make_folder(tmp_path, [weights()], ending="bin")
    save_file({"other.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.notes == ("pytorch_model.bin was read; ignored beside it: adapter_model.safetensors",)


def test_safetensors_come_before_torch_files_of_the_same_name(tmp_path: Path) -> None:
    make_folder(tmp_path, [weights()], stem="unet_model")
    make_folder(tmp_path, [{"other.weight": torch.ones(2, 2)}], stem="unet_model", ending="bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.notes == ("unet_model.safetensors was read; ignored beside it: unet_model.bin",)


def test_an_index_of_safetensors_comes_before_one_of_torch_files(tmp_path: Path) -> None:
    make_folder(tmp_path, split({"other.weight": torch.ones(2, 2), "b": torch.ones(1)}, 2), ending="bin")
    make_folder(tmp_path, split(weights(), 3))
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.notes == (
            "model.safetensors.index.json was read; ignored beside it: pytorch_model.bin.index.json",
        )


def test_shards_of_unusual_names_belong_to_their_index(tmp_path: Path) -> None:
    state = weights()
    first, second = split(state, 2)
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")
    places = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(second, "b.safetensors")}
    (tmp_path / "net.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(contents(checkpoint), state)
        assert checkpoint.notes == ()


def test_tensors_that_the_index_does_not_name_are_taken_with_a_note(tmp_path: Path) -> None:
    make_folder(tmp_path, split(weights(), 3))
    edit_index(tmp_path, weight_map={name: at for name, at in weight_map(tmp_path).items() if name != "steps"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(contents(checkpoint), weights())
        assert checkpoint.notes == ("1 tensor is in the shards but not in the index, and included (steps)",)


def test_a_key_that_no_shard_has_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, split(weights(), 2))
    with pytest.raises(CheckpointError, match=r"key 'model'; a safetensors file has no inner dicts"):
        open_checkpoint(tmp_path, key="model")


def test_a_nested_torch_file_in_a_folder_keeps_its_nesting(tmp_path: Path) -> None:
    torch.save({"model": weights(), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.key, checkpoint.extras) == ("model", {"model": {}, "epoch": 3})


def _touch(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"\0")

    return make


def _two(folder: Path) -> None:
    for name in ("a", "b"):
        make_folder(folder, [weights()], stem=name)


def _compressed_and_not(folder: Path) -> None:
    for name in ("model", "model.mpo"):
        make_folder(folder, [weights()], stem=name)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (_touch(), r"an empty folder; nothing can be read"),
    "nothing": (
        _touch("readme.md"),
        r"a folder without weights; it has none of \*\.safetensors, .*pytorch_model\.bin\.index\.json",
    ),
    "distributed": (
        _touch(".metadata", "__0_0.distcp"),
        r"a torch distributed checkpoint; .*`python -m torch\.distributed\S+ dcp_to_torch \S+/model model\.pt`",
    ),
    "spaces": (_touch("a b/.metadata"), r"in a b/; .*dcp_to_torch '\S+/model/a b' model\.pt`"),
    "fsdp": (
        _touch("pytorch_model_fsdp_0/.metadata"),
        r"a torch distributed checkpoint in pytorch_model_fsdp_0/; .*dcp_to_torch \S+/pytorch_model_fsdp_0 model\.pt",
    ),
    "deepspeed": (_touch("zero_to_fp32.py", "latest"), r"a DeepSpeed checkpoint; .*the zero_to_fp32\.py"),
    "cache": (_touch("snapshots/x", "blobs/y"), r"a download cache of Hugging Face; .*folders in \S+snapshots"),
    "lightning": (_touch("epoch=1.ckpt", "hparams.yaml"), r"but epoch=1\.ckpt; .* Give the file"),
    "inner": (
        _touch("unet/model.safetensors", "vae/model.safetensors", "model_index.json"),
        r"some in unet/, vae/; .* Give one of those",
    ),
    "other library": (_touch("tf_model.h5"), r"another library \(tf_model\.h5\); .*Convert"),
    "no index": (
        _touch("model-00001-of-00002.safetensors"),
        r"shards without an index \(model-00001-of-00002\.safetensors\); .*\.index\.json",
    ),
    "several": (_two, r"several checkpoints: a\.safetensors, b\.safetensors; .* Give one of them"),
    "both": (_compressed_and_not, r"several checkpoints: model\.mpo\.safetensors, model\.safetensors; "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_read_is_named_with_a_way_out(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert caught.value.where == str(folder)

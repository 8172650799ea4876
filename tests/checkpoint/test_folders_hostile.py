"""Folders made to mislead: nothing outside is opened, nothing is guessed, and every refusal says why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpocompress.checkpoint.folders import index
from mpocompress.checkpoint.folders.companions import MAX_FILE_BYTES
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import CheckpointError, MPOCompressError
from tests.checkpoint.folders import edit_index, make_folder, split, weight_map, weights

PARTS = split(weights(), 3)
SECOND = "model-00002-of-00003.safetensors"


def _moved(place: object) -> Callable[[Path], None]:
    """The index says that `steps` is somewhere else."""

    def spoil(folder: Path) -> None:
        save_file({"steps": torch.tensor(7)}, folder.parent / "outside.safetensors")
        (folder / "in").mkdir()
        edit_index(folder, weight_map={**weight_map(folder), "steps": place})

    return spoil


def _text(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


def _index(**entries: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        edit_index(folder, **entries)

    return spoil


def _shard(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / SECOND).unlink()
        make(folder / SECOND)

    return spoil


def _second(name: str, ending: str = "safetensors") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        save_file({**PARTS[1], name: torch.ones(2)}, folder / SECOND)

    return spoil


def _config(text: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "config.json").write_bytes(text)

    return spoil


def _lfs(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")


def _itself(path: Path) -> None:
    path.symlink_to("model.safetensors.index.json")


ELSEWHERE = r"the shard of steps is .*; only files in the folder of the index are opened"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "parent": (_moved("../outside.safetensors"), ELSEWHERE),
    "absolute": (_moved("/etc/passwd"), ELSEWHERE),
    "backslash": (_moved("..\\outside.safetensors"), ELSEWHERE),
    "inner": (_moved("in/x.safetensors"), ELSEWHERE),
    "dots": (_moved(".."), ELSEWHERE),
    "nul": (_moved("a\0b"), r"the shard of steps is 'a\\x00b'"),
    "escape": (_moved("\x1b[31m/x"), r"the shard of steps is '\\x1b\[31m/x'"),
    "no text": (_moved(["a"]), ELSEWHERE),
    "number": (_moved(3), ELSEWHERE),
    "nothing": (_moved(""), ELSEWHERE),
    "missing": (_moved("gone.safetensors"), r"of the 4 shards it names 1 is missing: gone\.safetensors; "),
    "folder": (_moved("in"), r"in: a folder instead of a file; it holds no model"),
    "itself": (_shard(_itself), rf"{SECOND}: JSON text that is not an index of shards"),
    "pointer": (_shard(_lfs), rf"{SECOND}: a git-lfs pointer"),
    "pipe": (_shard(os.mkfifo), rf"{SECOND}: a device, pipe or socket"),
    "broken link": (_shard(lambda path: path.symlink_to("gone")), rf"1 is missing: {SECOND}"),
    "lacking": (
        _shard(lambda path: save_file({"fc.q": torch.ones(2)}, path)),
        r"is not in model-00002.*, and 2 more",
    ),
    "twice": (
        _second("steps"),
        rf"steps is in {SECOND} and in model-00003-of-00003\.safetensors; the checkpoint is ambiguous",
    ),
    "same file": (
        _shard(lambda path: path.symlink_to("model-00001-of-00003.safetensors")),
        r"is not in model-00002-of-00003\.safetensors",
    ),
    "no json": (_text("{weight_map"), r"not usable JSON \(.*\); it is not the index of shards of a model"),
    "deep": (_text('{"weight_map": ' + "[" * 200_000), r"not usable JSON \(nested too deep\)"),
    "key twice": (_text('{"weight_map": {"a": "x", "a": "y"}}'), r"key 'a' twice in one object; the file is ambiguous"),
    "list": (_text('["weight_map"]'), r"a JSON list; the index of shards is a JSON object"),
    "no map": (_index(weight_map=None), r"JSON text that is not an index of shards; it holds no model"),
    "empty map": (_index(weight_map={}), r"'weight_map' is not an object with entries; it names no tensor"),
    "map is list": (_index(weight_map=["a"]), r"'weight_map' is not an object with entries"),
    "metadata": (_index(metadata=[]), r"'metadata' is not an object"),
    "no document": (
        _index(metadata={"mpocompress": {}}),
        r"'mpocompress' or .* in 'metadata' is not text; ",
    ),
    "aliases": (
        _index(metadata={"mpocompress": "{}", "mpocompress.aliases": '{"a": "gone"}'}),
        r"alias a of gone does not fit the tensors",
    ),
    "no aliases": (_index(metadata={"mpocompress": "{}", "mpocompress.aliases": "["}), r"is not a JSON object"),
    "config": (_config(b"{"), r"config\.json: not usable JSON \(.*\); it is not the configuration of a model"),
    "config list": (_config(b"[]"), r"config\.json: a JSON list; the configuration is a JSON object"),
    "config bytes": (_config(b"\xff\xfe\0{"), r"config\.json: not usable JSON"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused(case: str, tmp_path: Path) -> None:
    spoil, message = HOSTILE[case]
    folder = make_folder(tmp_path / "model", PARTS)
    spoil(folder)
    with pytest.raises(MPOCompressError, match=message) as caught:
        open_checkpoint(folder)
    assert caught.value.action.endswith(".")
    assert "\x1b" not in str(caught.value)


def test_many_missing_shards_are_counted_and_some_named(tmp_path: Path) -> None:
    places = {f"t{number}": f"s{number}.safetensors" for number in range(10_000)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(
        CheckpointError, match=r"of the 10000 shards it names 10000 are missing: s0\.s.* and 9,995 more;"
    ) as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_huge_index_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, PARTS)
    monkeypatch.setattr(index, "MAX_INDEX_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"more than 100 bytes; no valid index of shards is that large"):
        open_checkpoint(tmp_path)


def test_a_compressed_file_is_no_shard(tmp_path: Path) -> None:
    make_folder(tmp_path, PARTS)
    save_file(PARTS[1], tmp_path / SECOND, {"mpocompress": "{}"})
    with pytest.raises(MPOCompressError, match=rf"shard {SECOND} is a complete compressed file"):
        open_checkpoint(tmp_path)


def test_what_is_not_small_plain_text_beside_the_weights_stays_behind(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("private")
    folder = make_folder(tmp_path / "model", PARTS)
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "vocabulary.txt").symlink_to("vocab.txt")
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    for name in ("link.txt", "optimizer.bin", ".hidden"):
        (folder / name).symlink_to(secret)
    torch.save(weights(), folder / "named.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / "onnx").mkdir()
    with (folder / "large.txt").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.layout is not None
        assert checkpoint.layout.companions == ("config.json", "tokenizer.model", "vocab.txt", "vocabulary.txt")
        assert checkpoint.layout.ignored == (
            "large.txt",
            "link.txt",
            "named.txt",
            "onnx/",
            "optimizer.bin",
            "pipe.txt",
        )

"""Open the folder of a model: weights in one file or in shards, and the configuration beside them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.folders.companions import companion_files, names_in
from mpocompress.checkpoint.folders.index import ShardIndex, read_index
from mpocompress.checkpoint.folders.json_file import read_json
from mpocompress.checkpoint.folders.shards import OpenFile, open_shards
from mpocompress.checkpoint.folders.wrong_file import nothing_to_read
from mpocompress.checkpoint.layout import CONFIG, INDEX_SUFFIX, Layout, stem_of
from mpocompress.checkpoint.sniff import Form, sniff
from mpocompress.errors import CheckpointError
from mpocompress.text import listed, shown

MAX_CONFIG_BYTES = 16 * 2**20
# A shard belongs to an index and is not a checkpoint of its own.
_SHARD = re.compile(r"-\d+-of-\d+(\.mpo)?\.(safetensors|bin)$")
_SAFETENSORS = re.compile(r"\.safetensors(\.index\.json)?$")
_TORCH = re.compile(r"model\.bin(\.index\.json)?$")
_COMPRESSED = re.compile(r"\.mpo\.safetensors(\.index\.json)?$")
# The usual names, in the order in which transformers looks for them.
_USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_MOST_SHOWN = 5


def open_folder(path: Path, key: str | None, open_file: OpenFile) -> Checkpoint:
    """Open the one checkpoint in a folder.

    Usual names are preferred to others, then safetensors to torch files.

    Args:
        path: a folder.
        key: position of the state dict in a torch file; None to find it.
        open_file: opens one file.

    Returns:
        The open checkpoint; `notes` name the files that were ignored.

    Raises:
        CheckpointError: there is none, there are several, or it cannot be read.
        FormatError: it is marked as ours but not laid out like it.
    """
    path = path if path.name else path.resolve()  # the report calls the model by the name of its folder
    name, ignored = _choose(path)
    notes = (f"{shown(name)} was read; ignored beside it: {listed(ignored, _MOST_SHOWN)}",) if ignored else ()
    if name.endswith(INDEX_SUFFIX):
        return _open_shards(read_index(path / name), path, key, open_file, notes)
    return _open_single(path / name, path, key, open_file, notes)


def open_index(path: Path, key: str | None, open_file: OpenFile) -> Checkpoint:
    """Open a checkpoint in shards by its index.

    Args:
        path: a JSON file.
        key: position of the state dict in each shard; None for the top.
        open_file: opens one file.

    Raises:
        CheckpointError: it is no index, or the checkpoint cannot be read.
        FormatError: it is marked as ours but not laid out like it.
    """
    return _open_shards(read_index(path), path, key, open_file, ())


def _choose(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The file or index to open, and those that are ignored."""
    names = [name for name in names_in(folder) if not (folder / name).is_dir()]
    whole = [name for name in names if not _SHARD.search(name)]
    in_safetensors = [name for name in whole if _SAFETENSORS.search(name)]
    weights = in_safetensors + [name for name in whole if _TORCH.search(name)]
    if not weights:
        raise nothing_to_read(folder, [name for name in names if _SHARD.search(name)])
    compressed = [name for name in weights if _COMPRESSED.search(name)]
    if len(compressed) not in (0, len(weights)):
        raise _several(folder, weights)
    usual = [name for name in _USUAL if name in weights]
    chosen = usual or _without_shards(folder, in_safetensors or weights)
    if len(chosen) > 1 and not usual:
        raise _several(folder, weights)
    others = [name for name in weights if name != chosen[0]]
    shards = _named_by(folder / chosen[0]) if others else ()
    return chosen[0], tuple(name for name in others if name not in shards)


def _without_shards(folder: Path, names: list[str]) -> list[str]:
    """Leave out files that an index among them names."""
    shards = {shard for name in names for shard in _named_by(folder / name)} if len(names) > 1 else set()
    return [name for name in names if name not in shards] or names


def _named_by(path: Path) -> set[str]:
    return set(read_index(path).shards) if path.name.endswith(INDEX_SUFFIX) else set()


def _open_shards(
    index: ShardIndex, path: Path, key: str | None, open_file: OpenFile, notes: tuple[str, ...]
) -> Checkpoint:
    layout = _layout(index.path, (index.path.name, *index.shards))
    return open_shards(
        index,
        key,
        open_file,
        path=path,
        layout=layout,
        config=_config(layout),
        config_files=_config_file(layout),
        notes=notes,
    )


def _open_single(file: Path, path: Path, key: str | None, open_file: OpenFile, notes: tuple[str, ...]) -> Checkpoint:
    layout = _layout(file, (file.name,))
    config = _config(layout)
    opened = open_file(file, key)
    return dataclasses.replace(
        opened,
        path=path,
        layout=layout,
        config=config,
        config_files=_config_file(layout),
        notes=(*notes, *opened.notes),
    )


def _layout(file: Path, weights: tuple[str, ...]) -> Layout:
    companions, ignored = companion_files(file.parent, weights)
    return Layout(folder=file.parent, stem=stem_of(file.name), shards={}, companions=companions, ignored=ignored)


def _config_file(layout: Layout) -> tuple[Path, ...]:
    path = layout.folder / CONFIG
    return (path,) if sniff(path) is not Form.MISSING else ()


def _config(layout: Layout) -> Mapping[str, object]:
    action = "Download the folder again, or move the file out of it."
    files = _config_file(layout)
    return read_json(files[0], largest=MAX_CONFIG_BYTES, kind="configuration", action=action) if files else {}


def _several(folder: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        where=str(folder),
        found=f"several checkpoints: {listed(names, _MOST_SHOWN)}",
        why="the choice between them is ambiguous",
        action="Give one of them instead of the folder.",
    )

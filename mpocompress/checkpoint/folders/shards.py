"""Read a checkpoint in shards: every header once, and few shards open at any time."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from mpocompress.checkpoint.checkpoint import Checkpoint, FileSource, TensorInfo
from mpocompress.checkpoint.contents.extras import holds_anything
from mpocompress.checkpoint.folders.index import ShardIndex, check_contents
from mpocompress.checkpoint.forms.safetensors_file import aliased
from mpocompress.checkpoint.layout import Layout
from mpocompress.checkpoint.lazy_tensors import LazyTensor
from mpocompress.checkpoint.own_format import SHARD, inconsistent, own_key
from mpocompress.text import shown

MAX_OPEN = 4  # weights are read in file order, several at a time
OpenFile = Callable[[Path, str | None], Checkpoint]


def open_shards(
    index: ShardIndex,
    key: str | None,
    open_file: OpenFile,
    *,
    path: Path,
    layout: Layout,
    config: Mapping[str, object],
    config_files: tuple[Path, ...],
    notes: tuple[str, ...],
) -> Checkpoint:
    """Open a checkpoint in shards.

    Args:
        index: its index; every shard that it names exists.
        key: position of the state dict in each shard; None for the top.
        open_file: opens one file.
        path: the folder or the index, as the user gave it.
        layout: the folder, without the shard of each tensor.
        config: the configuration beside the index.
        config_files: files with the configuration.
        notes: notes that come first.

    Returns:
        The open checkpoint; tensors come shard by shard.

    Raises:
        CheckpointError: a shard cannot be read, or does not belong to the index.
        FormatError: the index or a shard is marked as ours but not laid out like it.
    """
    where = str(index.path)
    shard_key = key or ""
    if index.document is not None:
        key, shard_key = own_key(where, key), ""
    infos: dict[str, TensorInfo] = {}
    contents: dict[str, tuple[str, ...]] = {}
    metadata: dict[str, str] = {}
    all_notes = list(notes)
    classes: dict[str, str] = {}
    container = ""
    for shard in index.shards:
        with open_file(index.path.with_name(shard), shard_key) as opened:
            _check_shard(index, shard, opened)
            contents[shard] = tuple(opened.tensors)
            infos |= opened.tensors
            metadata = {name: text for name, text in opened.metadata.items() if name != SHARD} | metadata
            all_notes += [f"{shown(shard)}: {note}" for note in opened.notes]
            if holds_anything(opened.lazy_extras):
                all_notes.append(f"{shown(shard)}: contents other than tensors are not carried over")
            classes |= opened.classes
            container = container or opened.container
    all_notes += check_contents(index, contents)
    shard_of = {name: shard for shard, names in contents.items() for name in names}
    if index.document is not None:
        infos |= aliased(index.aliases, infos, where)
    shards = _Shards(index, shard_key, open_file)
    return Checkpoint(
        path=path,
        container=container,
        tensors=infos,
        source=FileSource(
            (index.path, *(index.path.with_name(shard) for shard in index.shards)),
            lambda name: shards.find(shard_of[name], name),
            shards.close,
        ),
        key=key or "",
        metadata=metadata,
        notes=tuple(all_notes),
        document=index.document,
        classes=classes,
        config=config,
        layout=dataclasses.replace(layout, shards=shard_of),
        config_files=config_files,
    )


class _Shards:
    """The open shards: those used last, at most `MAX_OPEN`, for any number of threads."""

    def __init__(self, index: ShardIndex, key: str, open_file: OpenFile) -> None:
        self._index, self._key, self._open_file = index, key, open_file
        self._open: OrderedDict[str, Checkpoint] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, shard: str, name: str) -> LazyTensor:
        """Return a tensor, not yet read; it stays valid when its shard is closed."""
        with self._lock:
            if shard not in self._open:
                while len(self._open) >= MAX_OPEN:
                    _close(self._open.popitem(last=False)[1])
                self._open[shard] = self._open_file(self._index.path.with_name(shard), self._key)
            self._open.move_to_end(shard)
            return self._open[shard].lazy_tensor(name)

    def close(self) -> None:
        """Close all shards."""
        with self._lock:
            while self._open:
                _close(self._open.popitem()[1])


def _close(checkpoint: Checkpoint) -> None:
    checkpoint.__exit__(None, None, None)


def _check_shard(index: ShardIndex, shard: str, opened: Checkpoint) -> None:
    if opened.document is not None:
        raise inconsistent(str(index.path), f"shard {shown(shard)} is a complete compressed file")
    if SHARD in opened.metadata and index.document is None:
        raise inconsistent(str(index.path), f"{shown(shard)} belongs to the index of a compressed folder, not this")

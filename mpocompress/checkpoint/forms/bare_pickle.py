"""Reading what pickle.dump wrote: tensors stand in it as small one-stream files of their own."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.forms.legacy_stream import read_stream
from mpocompress.checkpoint.pickles.builders import builder
from mpocompress.checkpoint.pickles.reader import read_pickle
from mpocompress.checkpoint.protocol import PICKLE, Checkpoint
from mpocompress.checkpoint.storages import Storage, native
from mpocompress.errors import CheckpointError
from mpocompress.text import shown_size

MAX_FILE_BYTES = 4 * 2**30


def open_pickle(path: Path, key: str | None) -> Checkpoint:
    """Open a bare pickle, running nothing from it. Unlike every other form, all of it is read into memory.

    Args:
        path: a file that `sniff` found to be one.
        key: where the state dict is; None to find it.

    Returns:
        The open checkpoint.

    Raises:
        CheckpointError: the file is damaged, has no clear state dict, or is too large to be read this way.
    """
    where, size_bytes = str(path), path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise CheckpointError(
            where=where,
            found=f"a bare pickle of {shown_size(size_bytes)}",
            why=f"such files must fit into memory, and are read up to {shown_size(MAX_FILE_BYTES)}",
            action="If you trust it, load it with pickle and save its tensors: torch.save(state_dict, ...).",
        )

    def from_bytes(data: object) -> object:
        if not isinstance(data, bytes):
            raise TypeError("memory that is no bytes")
        memory = torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()
        storage, big_endian = read_stream(io.BytesIO(data), memory, where)
        if not isinstance(storage, Storage):
            raise TypeError("memory that holds something else")
        if not big_endian:
            return storage
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage.memory)
        return Storage(memory=native(tensor, turned=True).untyped_storage(), dtype=storage.dtype)

    def fetch(_: object) -> object:
        raise TypeError("it refers to memory outside of it")

    build = builder(where, {"torch.storage._load_from_bytes": from_bytes})
    with path.open("rb") as stream:
        root = read_pickle(stream, where, build=build, fetch=fetch)
    return open_contents(root, path=path, container=PICKLE, key=key, read=native, close=lambda: None)

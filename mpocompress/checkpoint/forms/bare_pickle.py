"""Read files of pickle.dump: each storage in them is a small one-stream file."""

from __future__ import annotations

import io
from pathlib import Path

from mpocompress.checkpoint.checkpoint import PICKLE, Checkpoint
from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.forms.legacy_stream import read_stream
from mpocompress.checkpoint.pickles.builders import builder
from mpocompress.checkpoint.pickles.reader import read_pickle
from mpocompress.checkpoint.storages import Storage
from mpocompress.errors import CheckpointError
from mpocompress.text import shown_size

MAX_FILE_BYTES = 4 * 2**30


def open_pickle(path: Path, key: str | None) -> Checkpoint:
    """Open a bare pickle; no code from it is run. Unlike every other form, the whole file is read into memory.

    Args:
        path: a bare pickle, according to `sniff`.
        key: position of the state dict; None to find it.

    Raises:
        CheckpointError: the file is damaged, has no unambiguous state dict, or is larger than `MAX_FILE_BYTES`.
    """
    where, size_bytes = str(path), path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise CheckpointError(
            where=where,
            found=f"a bare pickle of {shown_size(size_bytes)}",
            why=f"such files are read into memory, up to {shown_size(MAX_FILE_BYTES)}",
            action="If you trust it, load it with pickle and save its tensors: torch.save(state_dict, ...).",
        )

    def from_bytes(data: object) -> object:
        if not isinstance(data, bytes):
            raise TypeError("a storage that is not bytes")
        storage = read_stream(io.BytesIO(data), bytearray(data), where)
        if not isinstance(storage, Storage):
            raise TypeError("bytes that hold no storage")
        return storage

    def fetch(_: object) -> object:
        raise TypeError("a storage outside of the file")

    build = builder(where, {"torch.storage._load_from_bytes": from_bytes})
    with path.open("rb") as stream:
        root = read_pickle(stream, where, build=build, fetch=fetch)
    return open_contents(root, path=path, container=PICKLE, key=key)

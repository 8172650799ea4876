"""Read the one-stream form that torch.save wrote before PyTorch 1.6, and still writes on request.

Five pickles one after the other (a magic number, the version, facts about the machine, the values, the names of the
pieces of memory), then the memory, piece by piece: a count of elements and their bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from mpocompress.checkpoint.checkpoint import TORCH_LEGACY, Checkpoint
from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.pickles.builders import builder
from mpocompress.checkpoint.pickles.reader import read_pickle
from mpocompress.checkpoint.pickles.values import Global, Instance
from mpocompress.checkpoint.storages import InputFile, Storage, storage_dtype
from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size

MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8
_DAMAGED = "the file is damaged or malicious"


def open_legacy(path: Path, key: str | None) -> Checkpoint:
    """Open a file of the one-stream form; no code from it is run.

    Args:
        path: a file of this form, according to `sniff`.
        key: position of the state dict; None to find it.

    Raises:
        CheckpointError: the file is damaged, or has no unambiguous state dict.
    """
    with path.open("rb") as stream:
        root = read_stream(stream, InputFile(path), str(path))
    return open_contents(root, path=path, container=TORCH_LEGACY, key=key)


def read_stream(stream: BinaryIO, buffer: InputFile | bytearray, where: str) -> object:
    """Return the value in a one-stream file.

    Args:
        stream: the file, at its start.
        buffer: the same bytes, for the storages.
        where: the file, for messages.

    Raises:
        CheckpointError: the file is damaged, truncated or of an unknown version.
    """
    magic, version, machine = (_unpickle(stream, where, _Pieces(where)) for _ in range(3))
    if magic != MAGIC or version != _VERSION or not isinstance(machine, dict):
        raise _damaged(where, "a header that torch.save never writes", _DAMAGED)
    start = stream.tell()
    pieces = _Pieces(where)  # first pass: sizes of the pieces; second pass: tensors, now that positions are known
    _unpickle(stream, where, pieces)
    names = _unpickle(stream, where, _Pieces(where))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise _damaged(where, "no list of its storages", _DAMAGED)
    pieces.locate(names, stream, buffer, big_endian=machine.get("little_endian") is False)
    stream.seek(start)
    return _unpickle(stream, where, pieces)


class _Pieces:
    """The pieces of memory by name: first their sizes, then their positions."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._dtypes: dict[str, DType] = {}
        self._counts: dict[str, int] = {}
        self._storages: dict[str, Storage] | None = None

    def fetch(self, persistent_id: object) -> object:
        """Return the value for a persistent id of torch.save: a storage, or an object saved with its source code."""
        match persistent_id:
            case ("module", value, *_):
                return value
            case ("storage", Global(name=class_name), str(name), str(), int(count), view):
                dtype = storage_dtype(class_name)
            case _:
                raise TypeError("a persistent id that torch.save does not write")
        if dtype is None or count < 0 or self._dtypes.setdefault(name, dtype) != dtype:
            raise TypeError(f"a storage of class {class_name}")
        if self._counts.setdefault(name, count) != count:
            raise TypeError("a storage of two sizes")
        return self._piece(name, view)

    @property
    def located(self) -> bool:
        """Whether the positions are known."""
        return self._storages is not None

    def locate(self, names: list[str], stream: BinaryIO, buffer: InputFile | bytearray, *, big_endian: bool) -> None:
        """Find the position of each piece, from the position of the stream on."""
        start, end = stream.tell(), stream.seek(0, os.SEEK_END)
        storages: dict[str, Storage] = {}
        for name in names:
            dtype, count = self._dtypes.get(name), self._counts.get(name)
            stream.seek(start)
            head = stream.read(_COUNT_BYTES)
            if (
                dtype is None
                or count is None
                or len(head) < _COUNT_BYTES
                or int.from_bytes(head, "big" if big_endian else "little") != count
            ):
                raise _damaged(
                    self._where,
                    f"storage {shown(name)} does not match its description",
                    "the file is truncated or damaged",
                )
            size_bytes = count * dtype.itemsize
            start += _COUNT_BYTES
            if start + size_bytes > end:
                raise _damaged(
                    self._where,
                    f"storage {shown(name)} has {shown_size(size_bytes)}, but the file ends before that",
                    "the file is truncated",
                )
            storages[name] = Storage(
                buffer=buffer, offset=start, size_bytes=size_bytes, dtype=dtype, swapped=big_endian
            )
            start += size_bytes
        missing = next((name for name in self._dtypes if name not in storages), None)
        if missing is not None:
            raise _damaged(self._where, f"storage {shown(missing)} is missing", "the file is truncated or damaged")
        self._storages = storages

    def _piece(self, name: str, view: object) -> object:
        if self._storages is None:
            return Instance("torch.Storage", (name,))
        storage = self._storages[name]
        match view:
            case None:
                return storage
            case (_, int(offset), int(count)) if offset >= 0 and count >= 0:
                itemsize = storage.dtype.itemsize
                if (offset + count) * itemsize <= storage.size_bytes:
                    return Storage(
                        buffer=storage.buffer,
                        offset=storage.offset + offset * itemsize,
                        size_bytes=count * itemsize,
                        dtype=storage.dtype,
                        swapped=storage.swapped,
                    )
        raise TypeError("a view beyond its storage")


def _unpickle(stream: BinaryIO, where: str, pieces: _Pieces) -> object:
    build = builder(where) if pieces.located else Instance
    return read_pickle(stream, where, build=build, fetch=pieces.fetch)


def _damaged(where: str, found: str, why: str) -> CheckpointError:
    return CheckpointError(
        where=where, found=found, why=why, action="Download the file again, or save the model again with torch.save."
    )

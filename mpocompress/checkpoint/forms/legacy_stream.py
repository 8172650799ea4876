"""Reading the one-stream form that torch.save wrote before PyTorch 1.6, and still writes when asked to.

Five pickles one after the other (a magic number, the version, facts about the machine, the values, the names of the
pieces of memory), then the memory, piece by piece: a count of elements and their bytes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.pickles.builders import builder
from mpocompress.checkpoint.pickles.reader import read_pickle
from mpocompress.checkpoint.pickles.values import Global, Instance
from mpocompress.checkpoint.protocol import TORCH_LEGACY, Checkpoint
from mpocompress.checkpoint.storages import Storage, mapped, native, part, place_in, storage_dtype
from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size

MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8


def open_legacy(path: Path, key: str | None) -> Checkpoint:
    """Open a file of the one-stream form, running nothing from it.

    Args:
        path: a file that `sniff` found to be one.
        key: where the state dict is; None to find it.

    Returns:
        The open checkpoint.

    Raises:
        CheckpointError: the file is damaged, or has no clear state dict.
    """
    memory = mapped(path)
    with path.open("rb") as stream:
        root, big_endian = read_stream(stream, memory, str(path))

    def read(tensor: torch.Tensor) -> torch.Tensor:
        return native(tensor, turned=big_endian)

    return open_contents(
        root,
        path=path,
        container=TORCH_LEGACY,
        key=key,
        read=read,
        close=lambda: None,
        place=partial(place_in, memory, turned=big_endian),
    )


def read_stream(stream: BinaryIO, memory: torch.UntypedStorage, where: str) -> tuple[object, bool]:
    """Read the values of a one-stream file.

    Args:
        stream: the file, at its start.
        memory: the same bytes, mapped or in memory.
        where: the file, for messages.

    Returns:
        What it holds, tensors laid over `memory`; and whether their bytes are in big-endian order.

    Raises:
        CheckpointError: it is damaged, cut off or of a version that was never written.
    """
    nothing = _Pieces(where)
    magic, version, machine = (_values(stream, where, nothing) for _ in range(3))
    if magic != MAGIC or version != _VERSION or not isinstance(machine, dict):
        raise _damaged(where, "a head that no torch.save ever wrote", "it is damaged or made to do harm")
    start = stream.tell()
    pieces = _Pieces(where)  # once to learn how large the pieces are, once more when it is known where they lie
    _values(stream, where, pieces)
    names = _values(stream, where, nothing)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise _damaged(where, "no list of its pieces of memory", "it is damaged or made to do harm")
    big_endian = machine.get("little_endian") is False
    pieces.place(names, memory, stream.tell(), big_endian)
    stream.seek(start)
    return _values(stream, where, pieces), big_endian


class _Pieces:
    """The pieces of memory by name: how large they are, then where they lie."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._dtypes: dict[str, torch.dtype] = {}
        self._counts: dict[str, int] = {}
        self._memory: dict[str, torch.UntypedStorage] | None = None

    def fetch(self, persistent_id: object) -> object:
        """Give what a persistent id of torch.save stands for: memory, or an object saved with its source code."""
        match persistent_id:
            case ("module", value, *_):
                return value
            case ("storage", Global(name=class_name), str(name), str(), int(count), view):
                dtype = storage_dtype(class_name)
            case _:
                raise TypeError("a persistent id that torch.save does not write")
        if dtype is None or count < 0 or self._dtypes.setdefault(name, dtype) != dtype:
            raise TypeError(f"memory of class {class_name}")
        if self._counts.setdefault(name, count) != count:
            raise TypeError("memory of two sizes")
        return self._piece(name, dtype, view)

    @property
    def is_placed(self) -> bool:
        """Whether it is known where they lie."""
        return self._memory is not None

    def place(self, names: list[str], memory: torch.UntypedStorage, start: int, big_endian: bool) -> None:
        """Find where each piece lies, from the position behind the pickles on."""
        whole = torch.empty(0, dtype=torch.uint8).set_(memory)
        found: dict[str, torch.UntypedStorage] = {}
        for name in names:
            dtype, count = self._dtypes.get(name), self._counts.get(name)
            head = bytes(whole[start : start + _COUNT_BYTES].tolist())
            if (
                dtype is None
                or len(head) < _COUNT_BYTES
                or int.from_bytes(head, "big" if big_endian else "little") != count
            ):
                raise _damaged(
                    self._where,
                    f"piece {shown(name)} of its memory is not as it is described",
                    "it is cut off or damaged",
                )
            size_bytes = count * dtype.itemsize
            start += _COUNT_BYTES
            if start + size_bytes > memory.nbytes():
                raise _damaged(
                    self._where,
                    f"piece {shown(name)} of its memory has {shown_size(size_bytes)} and the file ends before",
                    "it is cut off",
                )
            found[name] = part(memory, start, size_bytes)
            start += size_bytes
        missing = next((name for name in self._dtypes if name not in found), None)
        if missing is not None:
            raise _damaged(self._where, f"piece {shown(missing)} of its memory is missing", "it is cut off or damaged")
        self._memory = found

    def _piece(self, name: str, dtype: torch.dtype, view: object) -> object:
        if self._memory is None:
            return Instance("torch.Storage", (name,))
        memory = self._memory[name]
        match view:
            case None:
                return Storage(memory=memory, dtype=dtype)
            case (_, int(offset), int(count)) if offset >= 0 and count >= 0:
                begin, size_bytes = offset * dtype.itemsize, count * dtype.itemsize
                if begin + size_bytes <= memory.nbytes():
                    return Storage(memory=part(memory, begin, size_bytes), dtype=dtype)
        raise TypeError("a view beyond its memory")


def _values(stream: BinaryIO, where: str, pieces: _Pieces) -> object:
    build = builder(where) if pieces.is_placed else Instance
    return read_pickle(stream, where, build=build, fetch=pieces.fetch)


def _damaged(where: str, found: str, why: str) -> CheckpointError:
    return CheckpointError(
        where=where, found=found, why=why, action="Fetch the file again, or save the model again with torch.save."
    )

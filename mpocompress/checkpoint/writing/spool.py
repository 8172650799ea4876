"""A temporary file for finished tensors, so that they take no memory until the output is written."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from mpocompress.checkpoint.writing.deterministic import packed
from mpocompress.errors import OutputError

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """A tensor in a spool.

    Args:
        offset: position of its first byte.
        shape: dimensions.
        dtype: element type.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Spool:
    """A nameless temporary file beside an output; it is deleted when it is closed, however the process ends.

    Several threads may add to it. Use it as a context manager.

    Args:
        beside: the output; the file is created in its folder, which needs the space in any case.

    Raises:
        OutputError: the folder cannot be written to.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, Spool(Path(folder, "small.pt")) as spool:
        ...     spooled = spool.add(torch.ones(2, 2))
        ...     spool.tensor(spooled).sum()
        tensor(4.)
    """

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._lock = threading.Lock()
        self._size_bytes = 0
        self._map: mmap.mmap | None = None
        try:
            folder = Path(os.path.realpath(beside)).parent
            # Not buffered: data that could not be written must not cause a second error when the file is closed.
            self._stream = tempfile.TemporaryFile(buffering=0, dir=folder, prefix=".", suffix=".tmp")  # noqa: SIM115
        except OSError as error:
            raise self._refusal(error) from error

    def add(self, tensor: Tensor) -> Spooled:
        """Write a dense tensor to the end of the file.

        Raises:
            OutputError: the disk is full, or fails.
        """
        content = packed(tensor).reshape(-1).view(torch.uint8).numpy()
        with self._lock:
            offset = -(-self._size_bytes // _ALIGNMENT) * _ALIGNMENT
            try:
                self._stream.seek(offset)
                rest = memoryview(content.data)
                while rest:
                    rest = rest[self._stream.write(rest) :]
            except OSError as error:
                raise self._refusal(error) from error
            self._size_bytes = offset + content.nbytes
        return Spooled(offset=offset, shape=tuple(tensor.shape), dtype=tensor.dtype)

    def tensor(self, spooled: Spooled) -> Tensor:
        """Return a tensor mapped from the file, which takes no memory of its own.

        Its storage is exactly its elements; it stays valid after the spool is closed.

        Raises:
            OutputError: the disk is full, or fails.
        """
        count = int(torch.Size(spooled.shape).numel())
        if not count:
            return torch.empty(spooled.shape, dtype=spooled.dtype)
        with self._lock:
            if self._map is None or len(self._map) < spooled.offset + count * spooled.dtype.itemsize:
                try:
                    # Copy on write, because torch has no read-only tensors.
                    self._map = mmap.mmap(self._stream.fileno(), self._size_bytes, access=mmap.ACCESS_COPY)
                except OSError as error:
                    raise self._refusal(error) from error
            mapped = self._map
        return torch.frombuffer(mapped, dtype=spooled.dtype, count=count, offset=spooled.offset).reshape(spooled.shape)

    def __enter__(self) -> Self:
        """Return the spool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; its space is released when no tensor from it is in use."""
        self._map = None
        self._stream.close()

    def _refusal(self, error: OSError) -> OutputError:
        return OutputError(
            where=str(self._beside),
            found=f"finished tensors cannot be stored in its folder ({error.strerror or error})",
            why="together they may not fit into memory; nothing was written",
            action="Check the free space and the permissions of the folder.",
        )

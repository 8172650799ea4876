"""Blocks of bytes in a file, from which tensors are made later."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mpocompress.checkpoint import dtypes
from mpocompress.checkpoint.dtypes import DType
from mpocompress.errors import CheckpointError

PROCESS_MEMORY = object()
"""The buffer of tensors that are in memory already: offsets into it are addresses."""

_STORAGE_DTYPES: Mapping[str, DType] = {
    "DoubleStorage": dtypes.FLOAT64,
    "FloatStorage": dtypes.FLOAT32,
    "HalfStorage": dtypes.FLOAT16,
    "BFloat16Storage": dtypes.BFLOAT16,
    "LongStorage": dtypes.INT64,
    "IntStorage": dtypes.INT32,
    "ShortStorage": dtypes.INT16,
    "CharStorage": dtypes.INT8,
    "ByteStorage": dtypes.UINT8,
    "BoolStorage": dtypes.BOOL,
    "ComplexDoubleStorage": dtypes.COMPLEX128,
    "ComplexFloatStorage": dtypes.COMPLEX64,
    "QInt8Storage": dtypes.INT8,  # quantized tensors are recognised and not rebuilt
    "QUInt8Storage": dtypes.UINT8,
    "QInt32Storage": dtypes.INT32,
    "UntypedStorage": dtypes.UINT8,
}


class InputFile:
    """A file that is read; it is open only while its bytes are mapped.

    Args:
        path: a file that is not empty.

    Attributes:
        memory: all bytes as a `torch.UntypedStorage`; set when the first tensor is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory: object | None = None
        self._identity = _identity(path.stat())

    @contextmanager
    def mapped(self) -> Iterator[mmap.mmap]:
        """Map the file into memory, for reading.

        Raises:
            CheckpointError: the file was changed or replaced since it was opened first.
        """
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self._check(os.fstat(stream.fileno()))
            yield content

    def check_unchanged(self) -> None:
        """Refuse a file that was changed or replaced since it was opened first.

        Raises:
            CheckpointError: it was, or it no longer exists.
        """
        try:
            self._check(self.path.stat())
        except OSError as error:
            raise self._changed(f"the file can no longer be read ({error.strerror})") from error

    def _check(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            raise self._changed("the file was changed after it was opened")

    def _changed(self, found: str) -> CheckpointError:
        return CheckpointError(
            where=str(self.path),
            found=found,
            why="the positions of its tensors may have changed",
            action="Try again when no other program writes to the file.",
        )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(slots=True, kw_only=True, eq=False)
class Storage:
    """A block of bytes, shared by the tensors that are views of it.

    Args:
        buffer: what holds the bytes: an `InputFile`, a bytearray, or `PROCESS_MEMORY`.
        offset: position of the first byte in the buffer.
        size_bytes: number of bytes.
        dtype: element type that the file gives for it.
        swapped: whether the bytes of every element are in the order of the other kind of processor.
        check: raises CheckpointError if the bytes, which it is given, do not match their checksum in the file.
        memory: the bytes as a `torch.UntypedStorage`; set when the first tensor is made.
    """

    buffer: object
    offset: int
    size_bytes: int
    dtype: DType
    swapped: bool = False
    check: Callable[[memoryview], None] | None = None
    memory: object | None = field(default=None, repr=False)


def storage_dtype(class_name: str) -> DType | None:
    """Return the element type of a class of storage, on any device; None for another class.

    Example:
        >>> str(storage_dtype("torch.cuda.HalfStorage"))
        'float16'
    """
    package, _, name = class_name.rpartition(".")
    return _STORAGE_DTYPES.get(name) if package.partition(".")[0] == "torch" else None

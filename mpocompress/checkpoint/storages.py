"""Memory of tensors inside a mapped file, and tensors over it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from mpocompress.checkpoint.protocol import Place
from mpocompress.errors import CheckpointError
from mpocompress.text import shown_size

# A tensor may repeat its elements by stride 0 (`expand`) up to this size; beyond, it claims memory the file lacks.
MAX_REPEATED_BYTES = 2**20
_MOST_DIMS = 64

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.QInt8Storage": torch.int8,  # of quantized tensors, which are recognised and not rebuilt
    "torch.QUInt8Storage": torch.uint8,
    "torch.QInt32Storage": torch.int32,
    "torch.UntypedStorage": torch.uint8,
    "torch.storage.UntypedStorage": torch.uint8,
}
"""The element type of each class of storage; those of CUDA and other devices have a further name in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A piece of memory, and the type of its elements.

    Args:
        memory: the bytes.
        dtype: type of an element.
    """

    memory: torch.UntypedStorage
    dtype: torch.dtype


def storage_dtype(class_name: str) -> torch.dtype | None:
    """Return the element type of a class of storage, on whatever device it was.

    Args:
        class_name: `torch.FloatStorage`, `torch.cuda.HalfStorage` and the like.

    Returns:
        The type, or None for another class.

    Example:
        >>> storage_dtype("torch.cuda.HalfStorage")
        torch.float16
    """
    return STORAGE_DTYPES.get(f"torch.{class_name.rpartition('.')[2]}") if class_name.startswith("torch.") else None


def mapped(path: Path, *, writable: bool = False) -> torch.UntypedStorage:
    """Map a file into memory; a `part` of it keeps the map alive.

    Args:
        path: a file that is not empty.
        writable: whether what is written to the bytes goes to the file; otherwise it stays in this process.

    Returns:
        Its bytes, as they are on the disk.
    """
    memory: Any = torch.UntypedStorage.from_file(str(path), shared=writable, nbytes=os.path.getsize(path))
    return cast("torch.UntypedStorage", memory)


def part(memory: torch.UntypedStorage, offset: int, size_bytes: int) -> torch.UntypedStorage:
    """Give a piece of memory, shared with the whole.

    Args:
        memory: the whole.
        offset: bytes before the piece.
        size_bytes: bytes of the piece; it must lie inside.

    Returns:
        The piece.
    """
    piece: Any = memory[offset : offset + size_bytes] if size_bytes else torch.empty(0).untyped_storage()
    return cast("torch.UntypedStorage", piece)


def tensor_over(
    storage: Storage,
    dtype: torch.dtype,
    offset: object,
    size: object,
    stride: object,
    where: str,
) -> torch.Tensor:
    """Lay a tensor over a piece of memory, as a file describes it.

    Args:
        storage: the memory.
        dtype: type of the elements.
        offset: elements before the first one.
        size: dimensions.
        stride: elements from one entry to the next, for every dimension.
        where: the file, for messages.

    Returns:
        The tensor.

    Raises:
        CheckpointError: it reaches beyond the memory, or repeats so little of it that it is made to exhaust memory.
        TypeError: a description that is none.
    """
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or not len(size) == len(stride) <= _MOST_DIMS:
        raise TypeError("a tensor without a proper size")
    if type(offset) is not int or not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise TypeError("a tensor with a size that is no number")
    count = 1
    for length in size:
        count *= length
    needed = (offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1) * dtype.itemsize if count else 0
    if needed > storage.memory.nbytes():
        raise CheckpointError(
            where=where,
            found=f"a tensor of shape {size} needs {shown_size(needed)} of memory that has"
            f" {shown_size(storage.memory.nbytes())}",
            why="it reaches beyond its data, so the file is damaged or made to do harm",
            action="Fetch the file again, or save the model again.",
        )
    if count * dtype.itemsize > max(storage.memory.nbytes(), MAX_REPEATED_BYTES):
        raise CheckpointError(
            where=where,
            found=f"a tensor of shape {size} claims {shown_size(count * dtype.itemsize)} and the file holds"
            f" {shown_size(storage.memory.nbytes())} of it",
            why="it repeats its elements (stride 0), or the file is made to exhaust memory",
            action="If the model is yours, make that tensor contiguous and save it again.",
        )
    return torch.empty(0, dtype=dtype).set_(storage.memory, offset, size, stride)


def place_in(file: torch.UntypedStorage, tensor: torch.Tensor, *, turned: bool = False) -> Place:
    """Tell where a tensor lies in the mapped file it was laid over.

    Args:
        file: the whole file.
        tensor: laid over a `part` of it.
        turned: whether its bytes are in the order of the other kind of processor.

    Returns:
        The place.
    """
    return Place(offset=tensor.data_ptr() - file.data_ptr(), stride=tensor.stride(), swapped=turned)


def swapped(
    tensor: torch.Tensor,
) -> torch.Tensor:
    """Turn the bytes of every element around.

    Args:
        tensor: contiguous.

    Returns:
        A new tensor of the same shape and dtype.

    Example:
        >>> swapped(torch.tensor([1], dtype=torch.int16))
        tensor([256], dtype=torch.int16)
    """
    width = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
    as_bytes = tensor.reshape(-1).view(torch.uint8).reshape(-1, width).flip(1).contiguous()
    return as_bytes.reshape(-1).view(tensor.dtype).reshape(tensor.shape)


def native(
    tensor: torch.Tensor,
    *,
    turned: bool = False,
) -> torch.Tensor:
    """Give a tensor over a mapped file as one that can be computed with.

    Args:
        tensor: laid over a file.
        turned: whether the bytes of every element are in the order of the other kind of processor.

    Returns:
        The tensor itself, without gradient; a copy where its bytes are turned, or lie where no element may start.

    Example:
        >>> memory = torch.UntypedStorage([0, 0, 0, 7])
        >>> number = tensor_over(Storage(memory=memory, dtype=torch.int32), torch.int32, 0, (1,), (1,), "x.pt")
        >>> native(number, turned=True)
        tensor([7], dtype=torch.int32)
    """
    plain = tensor.detach()
    if plain.data_ptr() % tensor.dtype.itemsize == 0 and not turned:
        return plain
    memory = plain.untyped_storage()
    aligned = torch.empty(memory.nbytes() // tensor.dtype.itemsize, dtype=tensor.dtype)
    aligned.untyped_storage().copy_(part(memory, 0, aligned.numel() * tensor.dtype.itemsize))
    elements = swapped(aligned) if turned else aligned
    return torch.as_strided(elements, tensor.shape, tensor.stride(), tensor.storage_offset())

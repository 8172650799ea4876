"""Tensors as a file describes them, and other values of torch, without torch: nothing is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from mpocompress.checkpoint.dtypes import INT64, DType
from mpocompress.checkpoint.storages import InputFile, Storage
from mpocompress.errors import CheckpointError
from mpocompress.text import shown_size

MAX_REPEATED_BYTES = 2**20
"""Largest tensor that may repeat its elements by stride 0 (`expand`); a larger one claims memory the file lacks."""
_MAX_DIMS = 64
_MAX_EXTENT = 2**62
_DEVICE = re.compile(
    "(cpu|cuda|ipu|xpu|mkldnn|opengl|opencl|ideep|hip|ve|fpga|maia|xla|lazy|vulkan|mps|meta|hpu|mtia|privateuseone)"
    r"(:(0|[1-9]\d?|1[01]\d|12[0-7]))?"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LazyTensor:
    """A dense tensor: where its elements are, and how they are arranged.

    Args:
        storage: block of bytes that holds the elements.
        dtype: element type.
        offset: elements in the storage before the first one.
        shape: dimensions.
        stride: elements from one entry to the next, for every dimension.
        value: the `torch.Tensor` itself, if it is in memory already.
    """

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    value: object | None = field(default=None, repr=False)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements, strides aside."""
        return self.numel * self.dtype.itemsize

    @property
    def start(self) -> int:
        """Position of the first element in the buffer of the storage, in bytes."""
        return self.storage.offset + self.offset * self.dtype.itemsize

    @property
    def span_bytes(self) -> int:
        """Bytes from the first element to the end of the last; 0 without elements."""
        return _span(self.shape, self.stride) * self.dtype.itemsize

    @property
    def in_file(self) -> bool:
        """Whether its bytes are those of a file, in which they could be replaced."""
        return isinstance(self.storage.buffer, InputFile)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LazySparseTensor:
    """A sparse tensor in coordinate format.

    Args:
        indices: int64, shape (sparse dimensions, entries).
        values: shape (entries, dense dimensions ...).
        shape: dimensions of the whole tensor.
        value: the `torch.Tensor` itself, if it is in memory already.
    """

    indices: LazyTensor
    values: LazyTensor
    shape: tuple[int, ...]
    value: object | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LazyMetaTensor:
    """A tensor without data (device `meta`).

    Args:
        dtype: element type.
        shape: dimensions.
        stride: elements from one entry to the next, for every dimension.
    """

    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]


AnyLazyTensor = LazyTensor | LazySparseTensor | LazyMetaTensor


class Size(tuple[int, ...]):
    """A `torch.Size`.

    Raises:
        TypeError: an entry is no integer.
        ValueError: an entry does not fit into 64 bits.
    """

    __slots__ = ()

    def __new__(cls, entries: Iterable[object] = ()) -> Self:
        """Check the entries."""
        if not isinstance(entries, tuple | list) or not all(type(entry) in (int, bool) for entry in entries):
            raise TypeError("a size is made of integers")
        if not all(-(2**63) <= entry < 2**63 for entry in entries):
            raise ValueError("a size beyond 64 bits")
        return super().__new__(cls, map(int, entries))


@dataclass(frozen=True, slots=True)
class Device:
    """A `torch.device`.

    Args:
        name: kind of device and number, such as `cuda:0`.

    Raises:
        ValueError: no such kind of device.
    """

    name: str

    def __post_init__(self) -> None:
        """Check the name."""
        if not _DEVICE.fullmatch(self.name):
            raise ValueError("a device of unknown kind")


def lay_out(storage: Storage, dtype: DType, offset: object, shape: object, stride: object, where: str) -> LazyTensor:
    """Return the tensor that a file describes as a view of a storage.

    Args:
        storage: block of bytes.
        dtype: element type.
        offset: elements before the first one.
        shape: dimensions.
        stride: elements from one entry to the next, for every dimension.
        where: the file, for messages.

    Raises:
        CheckpointError: the tensor reaches beyond its storage, or repeats a few elements to exhaust memory.
        TypeError: a malformed description.
    """
    if type(offset) is not int or not 0 <= offset < _MAX_EXTENT:
        raise TypeError("a tensor with a malformed offset")
    sizes, steps = _checked_layout(shape, stride)
    count = math.prod(sizes)
    needed = (offset + _span(sizes, steps)) * dtype.itemsize if count else 0
    if needed > storage.size_bytes:
        raise CheckpointError(
            where=where,
            found=f"a tensor of shape {sizes} needs {shown_size(needed)} and its storage has"
            f" {shown_size(storage.size_bytes)}",
            why="the tensor reaches beyond its data: the file is damaged or malicious",
            action="Download the file again, or save the model again.",
        )
    if count * dtype.itemsize > max(storage.size_bytes, MAX_REPEATED_BYTES):
        raise CheckpointError(
            where=where,
            found=f"a tensor of shape {sizes} claims {shown_size(count * dtype.itemsize)} and its storage has"
            f" {shown_size(storage.size_bytes)}",
            why="the tensor repeats its elements (stride 0), or the file was made to exhaust memory",
            action="If the model is yours, make that tensor contiguous and save it again.",
        )
    return LazyTensor(storage=storage, dtype=dtype, offset=offset, shape=sizes, stride=steps)


def lay_out_meta(dtype: DType, shape: object, stride: object) -> LazyMetaTensor:
    """Return the tensor without data that a file describes.

    Raises:
        TypeError: a malformed description.
    """
    sizes, steps = _checked_layout(shape, stride)
    if max(math.prod(sizes), _span(sizes, steps)) * dtype.itemsize >= _MAX_EXTENT:
        raise TypeError("a tensor without data that no memory could hold")
    return LazyMetaTensor(dtype=dtype, shape=sizes, stride=steps)


def lay_out_sparse(indices: object, values: object, shape: object) -> LazySparseTensor:
    """Return the sparse tensor that a file describes; its indices are not compared with its shape.

    Raises:
        TypeError: parts that do not fit together.
    """
    if not isinstance(indices, LazyTensor) or not isinstance(values, LazyTensor):
        raise TypeError("a sparse tensor without indices or values")
    sizes, _ = _checked_layout(shape, shape)
    if indices.dtype != INT64 or len(indices.shape) != 2 or not values.shape or len(sizes) < indices.shape[0]:
        raise TypeError("a sparse tensor with malformed indices")
    if values.shape != (indices.shape[1], *sizes[indices.shape[0] :]):
        raise TypeError("a sparse tensor with values of another shape")
    return LazySparseTensor(indices=indices, values=values, shape=sizes)


def _checked_layout(shape: object, stride: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or not len(shape) == len(stride) <= _MAX_DIMS:
        raise TypeError("a tensor with a malformed shape")
    if not all(type(entry) is int and 0 <= entry < _MAX_EXTENT for entry in (*shape, *stride)):
        raise TypeError("a tensor with a malformed shape")
    if math.prod(filter(None, shape)) >= _MAX_EXTENT:  # torch multiplies in order: a zero at the end is too late
        raise TypeError("a tensor with a malformed shape")
    return tuple(shape), tuple(stride)


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first one to the last, both included."""
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1 if math.prod(shape) else 0

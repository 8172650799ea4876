"""Tensors from the bytes of a file: the part of reading that needs torch."""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, cast

import torch

from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.lazy_tensors import (
    AnyLazyTensor,
    Device,
    LazyMetaTensor,
    LazySparseTensor,
    LazyTensor,
    Size,
)
from mpocompress.checkpoint.storages import PROCESS_MEMORY, InputFile, Storage
from mpocompress.checkpoint.torch_dtypes import dtype_of, torch_dtype

_lock = threading.Lock()


def make_tensor(lazy: LazyTensor) -> torch.Tensor:
    """Return a tensor on the CPU over the bytes of its file, without gradient.

    It is a copy if its bytes are in the other order, or start where no element of its type may start; otherwise a view:
    do not write to it.

    Raises:
        CheckpointError: the bytes do not match their checksum.

    Example:
        >>> from mpocompress.checkpoint.dtypes import INT32
        >>> storage = Storage(buffer=bytearray([0, 0, 0, 7]), offset=0, size_bytes=4, dtype=INT32, swapped=True)
        >>> make_tensor(LazyTensor(storage=storage, dtype=INT32, offset=0, shape=(1,), stride=(1,)))
        tensor([7], dtype=torch.int32)
    """
    if isinstance(lazy.value, torch.Tensor):
        return lazy.value.detach().cpu()
    storage = lazy.storage
    memory = _memory(storage)
    if storage.check is not None:
        storage.check(torch.empty(0, dtype=torch.uint8).set_(memory).numpy().data)
    tensor = torch.empty(0, dtype=torch_dtype(lazy.dtype)).set_(memory, lazy.offset, lazy.shape, lazy.stride)
    if tensor.data_ptr() % tensor.dtype.itemsize == 0 and not storage.swapped:
        return tensor
    aligned = torch.empty(storage.size_bytes // tensor.dtype.itemsize, dtype=tensor.dtype)
    aligned.untyped_storage().copy_(part(memory, 0, aligned.numel() * tensor.dtype.itemsize))
    elements = byteswap(aligned) if storage.swapped else aligned
    return torch.as_strided(elements, tensor.shape, tensor.stride(), tensor.storage_offset())


def materialise(value: object) -> Any:
    """Return a value read from a file with the tensors, sizes, devices and dtypes of torch in it.

    Args:
        value: plain values and containers, and descriptions of values of torch.

    Returns:
        Copies of the containers; shared values stay shared.

    Raises:
        CheckpointError: the bytes of a tensor do not match their checksum.
    """
    return _Converter(_torch_value).convert(value)


def describe(value: object) -> Any:
    """Return a value with its tensors, sizes, devices and dtypes of torch described; the inverse of `materialise`.

    Args:
        value: plain values and containers.

    Returns:
        Copies of the containers; shared values stay shared. A tensor of a kind that cannot be described stays.

    Example:
        >>> describe({"a": torch.ones(2, 3)})["a"].shape
        (2, 3)
    """
    return _Converter(_description).convert(value)


def describe_tensor(tensor: torch.Tensor) -> AnyLazyTensor | None:
    """Return the description of a tensor in memory; None for a kind that a plain file cannot hold."""
    if tensor.is_meta:
        return LazyMetaTensor(dtype=dtype_of(tensor.dtype), shape=tuple(tensor.shape), stride=tensor.stride())
    if tensor.layout is torch.sparse_coo:
        indices, values = describe_tensor(tensor._indices()), describe_tensor(tensor._values())
        if not isinstance(indices, LazyTensor) or not isinstance(values, LazyTensor):
            return None
        return LazySparseTensor(indices=indices, values=values, shape=tuple(tensor.shape), value=tensor)
    if not is_dense(tensor):
        return None
    memory, dtype = tensor.untyped_storage(), dtype_of(tensor.dtype)
    storage = Storage(
        buffer=PROCESS_MEMORY, offset=memory.data_ptr(), size_bytes=memory.nbytes(), dtype=dtype, memory=memory
    )
    return LazyTensor(
        storage=storage,
        dtype=dtype,
        offset=int(tensor.storage_offset()),
        shape=tuple(tensor.shape),
        stride=tensor.stride(),
        value=tensor,
    )


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether the elements of a tensor are in memory of its own: not sparse, quantized, nested or without data.

    Example:
        >>> is_dense(torch.ones(2)), is_dense(torch.ones(2).to_sparse()), is_dense(torch.ones(2, device="meta"))
        (True, False, False)
    """
    ordinary = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return ordinary and not tensor.is_meta and not tensor.is_quantized and not tensor.is_nested


def byteswap(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a contiguous tensor with the bytes of every element in reverse order.

    Example:
        >>> byteswap(torch.tensor([1], dtype=torch.int16))
        tensor([256], dtype=torch.int16)
    """
    width = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
    as_bytes = tensor.reshape(-1).view(torch.uint8).reshape(-1, width).flip(1).contiguous()
    return as_bytes.reshape(-1).view(tensor.dtype).reshape(tensor.shape)


def map_writable(path: Path) -> torch.UntypedStorage:
    """Map a file that is not empty into memory; changes of the bytes are written to the file."""
    memory: Any = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=os.path.getsize(path))
    return cast("torch.UntypedStorage", memory)


def part(memory: torch.UntypedStorage, offset: int, size_bytes: int) -> torch.UntypedStorage:
    """Return `size_bytes` of a block of memory from `offset` on, as a view that keeps the block alive."""
    piece: Any = memory[offset : offset + size_bytes] if size_bytes else torch.empty(0).untyped_storage()
    return cast("torch.UntypedStorage", piece)


def _memory(storage: Storage) -> torch.UntypedStorage:
    """The bytes of a storage, the same object for all tensors over it, so that torch.save writes them once."""
    with _lock:
        if storage.memory is None:
            if not storage.size_bytes:
                storage.memory = torch.empty(0).untyped_storage()
            elif isinstance(storage.buffer, InputFile):
                storage.memory = part(_file_memory(storage.buffer), storage.offset, storage.size_bytes)
            else:
                buffer, start, count = cast("bytearray", storage.buffer), storage.offset, storage.size_bytes
                elements = torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=start)
                storage.memory = elements.untyped_storage()
    return cast("torch.UntypedStorage", storage.memory)


def _file_memory(file: InputFile) -> torch.UntypedStorage:
    """All bytes of a file, mapped copy on write; the map needs no open file and exists as long as a tensor over it."""
    if file.memory is None:
        file.check_unchanged()
        file.memory = torch.UntypedStorage.from_file(str(file.path), shared=False, nbytes=os.path.getsize(file.path))
        file.check_unchanged()
    return cast("torch.UntypedStorage", file.memory)


def _torch_value(value: object) -> object:
    match value:
        case LazyTensor():
            return make_tensor(value)
        case LazySparseTensor():
            if value.value is not None:
                return value.value
            indices, values = make_tensor(value.indices), make_tensor(value.values)
            return torch.sparse_coo_tensor(indices, values, value.shape, check_invariants=False)
        case LazyMetaTensor():
            return torch.empty_strided(value.shape, value.stride, dtype=torch_dtype(value.dtype), device="meta")
        case Size():
            return torch.Size(value)
        case Device():
            return torch.device(value.name)
        case DType():
            return torch_dtype(value)
    return value


def _description(value: object) -> object:
    match value:
        case torch.Tensor():
            return describe_tensor(value) or value
        case torch.Size():
            return Size(tuple(value))
        case torch.device():
            return Device(str(value))
        case torch.dtype():
            return dtype_of(value)
    return value


class _Converter:
    """Copies containers with every leaf converted, each object once."""

    def __init__(self, leaf: Any) -> None:
        self._leaf = leaf
        self._converted: dict[int, Any] = {}

    def convert(self, value: object) -> Any:
        if id(value) not in self._converted:
            self._converted[id(value)] = self._convert(value)
        return self._converted[id(value)]

    def _convert(self, value: object) -> Any:
        if isinstance(value, dict) and type(value) in (dict, OrderedDict, Counter):
            copied: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
            copied.update((self.convert(key), self.convert(entry)) for key, entry in value.items())
            if isinstance(value, OrderedDict):
                vars(copied).update(self.convert(vars(value)))  # a state dict has its `_metadata` there
            return Counter(copied) if isinstance(value, Counter) else copied
        if type(value) is list:
            return [self.convert(entry) for entry in value]
        if type(value) is tuple:
            return tuple(self.convert(entry) for entry in value)
        return self._leaf(value)

"""Descriptions of tensors: torch makes every tensor that a description admits, and the same one."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpocompress.checkpoint.dtypes import DTYPES, FLOAT32, INT64, DType
from mpocompress.checkpoint.lazy_tensors import (
    LazySparseTensor,
    LazyTensor,
    Size,
    lay_out,
    lay_out_meta,
    lay_out_sparse,
)
from mpocompress.checkpoint.storages import InputFile, Storage
from mpocompress.checkpoint.tensors import describe, make_tensor, materialise
from mpocompress.errors import CheckpointError

MEMORY_BYTES = 96
LAYOUTS = st.integers(0, 3).flatmap(
    lambda dims: st.tuples(
        *(st.lists(st.sampled_from([0, 1, 2, 3, 5, 2**40, 2**61]), min_size=dims, max_size=dims) for _ in range(2))
    )
)


def storage(dtype: DType = FLOAT32, size_bytes: int = MEMORY_BYTES) -> Storage:
    return Storage(buffer=bytearray(range(size_bytes)), offset=0, size_bytes=size_bytes, dtype=dtype)


@settings(deadline=None)
@given(
    layout=LAYOUTS, offset=st.sampled_from([0, 1, 7, 2**61]), dtype=st.sampled_from(["uint8", "float32", "complex64"])
)
def test_torch_makes_what_a_description_admits(layout: tuple[list[int], list[int]], offset: int, dtype: str) -> None:
    shape, stride = map(tuple, layout)
    block = storage(DTYPES[dtype])
    try:
        lazy = lay_out(block, block.dtype, offset, shape, stride, "x.pt")
    except (CheckpointError, TypeError):
        return
    tensor = make_tensor(lazy)
    memory = torch.frombuffer(bytearray(range(MEMORY_BYTES)), dtype=torch.uint8).untyped_storage()
    expected = torch.empty(0, dtype=tensor.dtype).set_(memory, offset, shape, stride)
    assert (tensor.shape, tensor.stride()) == (expected.shape, expected.stride())
    assert (lazy.numel, lazy.size_bytes) == (expected.numel(), expected.numel() * expected.element_size())
    if expected.numel():
        assert lazy.start == expected.data_ptr() - memory.data_ptr()
        copies = (torch.empty(view.shape, dtype=view.dtype).copy_(view) for view in (tensor, expected))
        bits = [copy.reshape(-1).view(torch.uint8) for copy in copies]
        assert torch.equal(*bits)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [(0, (25,), (1,)), (1, (24,), (1,)), (0, (2, 2), (24, 1)), (24, (1,), (1,)), (2**61, (1,), (0,)), (24, (), ())],
)
def test_a_tensor_beyond_its_storage_is_refused(offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt: a tensor of shape .* needs .* and its storage has 96 bytes"):
        lay_out(storage(), FLOAT32, offset, shape, stride, "x.pt")


def test_a_tensor_that_repeats_its_elements_to_exhaust_memory_is_refused() -> None:
    assert lay_out(storage(), FLOAT32, 0, (2**18,), (0,), "x.pt").size_bytes == 2**20
    with pytest.raises(CheckpointError, match="repeats its elements"):
        lay_out(storage(), FLOAT32, 0, (2**18 + 1,), (0,), "x.pt")


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (-1, (1,), (1,)),
        (True, (1,), (1,)),
        (0.0, (1,), (1,)),
        (2**62, (0,), (1,)),
        (0, [1], [1]),
        (0, (1,), ()),
        (0, (1, -1), (1, 1)),
        (0, (1.0,), (1,)),
        (0, (1,), (2**62,)),
        (0, (1,) * 65, (1,) * 65),
    ],
)
def test_a_malformed_layout_is_refused(offset: object, shape: object, stride: object) -> None:
    with pytest.raises(TypeError, match="malformed"):
        lay_out(storage(), FLOAT32, offset, shape, stride, "x.pt")


@settings(deadline=None)
@given(layout=LAYOUTS)
def test_torch_makes_every_tensor_without_data(layout: tuple[list[int], list[int]]) -> None:
    shape, stride = map(tuple, layout)
    try:
        lazy = lay_out_meta(FLOAT32, shape, stride)
    except TypeError:
        assert math.prod(shape) >= 2**60 or sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) >= 2**59
        return
    tensor = materialise(lazy)
    assert (tensor.device.type, tensor.shape, tensor.stride()) == ("meta", shape, stride)


def _coordinates(entries: int, dims: int, dtype: DType = INT64) -> LazyTensor:
    return lay_out(storage(dtype), dtype, 0, (dims, entries), (entries, 1), "x.pt")


def test_torch_makes_a_sparse_tensor() -> None:
    values = lay_out(storage(), FLOAT32, 0, (2, 3), (3, 1), "x.pt")
    tensor = materialise(lay_out_sparse(_coordinates(2, 2), values, (5, 4, 3)))
    assert (tensor.layout, tensor.shape, tensor.sparse_dim(), tensor.dense_dim()) == (torch.sparse_coo, (5, 4, 3), 2, 1)


@pytest.mark.parametrize(
    ("indices", "shape"),
    [
        (None, (5, 4, 3)),
        (_coordinates(2, 2, FLOAT32), (5, 4, 3)),
        (_coordinates(3, 2), (5, 4, 3)),
        (_coordinates(2, 2), (5, 4, 2)),
        (_coordinates(2, 2), (5,)),
        (_coordinates(2, 2), [5, 4, 3]),
        (_coordinates(2, 2), (2**61, 2**61, 3)),
    ],
)
def test_parts_of_a_sparse_tensor_that_do_not_fit_are_refused(indices: object, shape: object) -> None:
    values = lay_out(storage(), FLOAT32, 0, (2, 3), (3, 1), "x.pt")
    with pytest.raises(TypeError, match=r"sparse|malformed"):
        lay_out_sparse(indices, values, shape)


def test_a_description_is_converted_back_with_its_sharing() -> None:
    shared = [torch.ones(2)]
    state = OrderedDict(weight=torch.ones(2, 2).t())
    vars(state)["_metadata"] = {"": {"version": 1}}
    value = {
        "state": state,
        "shared": (shared, shared),
        torch.float16: Counter("aab"),
        "size": torch.Size([2]),
        "device": torch.device("cuda:1"),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, device="meta"),
    }
    described = describe(value)
    assert isinstance(described["state"]["weight"], LazyTensor)
    assert isinstance(described["sparse"], LazySparseTensor)
    converted = materialise(described)
    assert list(map(str, converted)) == list(map(str, value))
    assert converted["state"]["weight"].data_ptr() == state["weight"].data_ptr()
    assert vars(converted["state"]) == vars(state)
    assert converted["shared"][0] is converted["shared"][1]
    assert converted[torch.float16] == Counter("aab")
    assert [type(converted[name]) for name in ("size", "device")] == [torch.Size, torch.device]
    assert converted["sparse"] is value["sparse"]
    assert converted["meta"].is_meta


def test_tensors_of_one_storage_share_memory(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(64)))
    file = InputFile(tmp_path / "x")
    block = Storage(buffer=file, offset=16, size_bytes=16, dtype=FLOAT32)
    first, second = (make_tensor(lay_out(block, FLOAT32, n, (2,), (1,), "x")) for n in (0, 2))
    assert first.untyped_storage()._cdata == second.untyped_storage()._cdata
    assert first.untyped_storage().nbytes() == 16


@pytest.mark.parametrize("change", ["replaced", "edited", "removed"])
def test_a_file_that_changes_before_it_is_read_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(64))
    file = InputFile(path)
    if change == "edited":
        path.write_bytes(bytes(65))
    else:
        path.unlink()
        if change == "replaced":
            (tmp_path / "y").write_bytes(bytes(64))
            path.write_bytes(bytes(64))
            (tmp_path / "y").replace(path)
    lazy = lay_out(Storage(buffer=file, offset=0, size_bytes=64, dtype=FLOAT32), FLOAT32, 0, (2,), (1,), "x")
    with pytest.raises(CheckpointError, match=r"x: the file (was changed after|can no longer be read)"):
        make_tensor(lazy)


def test_a_size_holds_integers_of_64_bits() -> None:
    assert Size([2, True]) == (2, 1)
    with pytest.raises(TypeError, match="a size is made of integers"):
        Size([1.0])
    with pytest.raises(ValueError, match="a size beyond 64 bits"):
        Size([2**63])

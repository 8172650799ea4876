from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.checkpoint.dtypes import FLOAT32, SAFETENSORS_DTYPES
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.checkpoint.writing.writer import write_checkpoint
from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size
from tests.checkpoint.files import assert_same, contents, state_dict

COMMON = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


def _write(path: Path, container: str, tensors: dict[str, torch.Tensor], document: str | None = None) -> None:
    write_checkpoint(
        path,
        tensors=tensors,
        aliases={},
        container=container,
        key="",
        extras={},
        metadata={},
        document=document,
        overwrite=False,
        inputs=[],
    )


def _tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """Random bits of a dtype; NaN and all."""
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).view(dtype).reshape(shape)


@st.composite
def _state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text(min_size=1, max_size=8).filter(_writable), unique=True, max_size=6))
    tensors = {
        name: _tensor(
            draw(st.sampled_from(COMMON)), draw(st.lists(st.integers(0, 5), max_size=3)), draw(st.integers(0, 99))
        )
        for name in names
    }
    return {**tensors, "layer.weight": torch.ones(2, 3)}


def _writable(name: str) -> bool:
    return name not in ("__metadata__", "layer.weight") and all(not 0xD800 <= ord(char) <= 0xDFFF for char in name)


@settings(deadline=None, max_examples=60)
@given(
    tensors=_state_dicts(),
    container=st.sampled_from(["torch-zip", "safetensors"]),
    document=st.sampled_from([None, '{"ü": "\\n"}']),
)
def test_what_is_written_is_read_back_bit_by_bit(
    tensors: dict[str, torch.Tensor], container: str, document: str | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        _write(path, container, tensors, document)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.document == document
            assert checkpoint.container == container
            if container == "torch-zip":
                assert list(checkpoint.tensors) == list(tensors)
            assert_same(contents(checkpoint), tensors)
            for name, info in checkpoint.tensors.items():
                assert info.shape == tuple(tensors[name].shape)
                assert torch_dtype(info.dtype) == tensors[name].dtype
                assert info.size_bytes == tensors[name].numel() * tensors[name].element_size()


@settings(deadline=None, max_examples=40)
@given(tensors=_state_dicts())
def test_safetensors_are_written_as_the_library_writes_them(tensors: dict[str, torch.Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        _write(path, "safetensors", tensors)
        assert_same(load_file(path), tensors)
        length = int.from_bytes(path.read_bytes()[:8], "little")
        data = path.read_bytes()[8 + length :]
    expected = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    start = 8 + int.from_bytes(expected[:8], "little")
    # The library breaks ties between types of one width its own way, so only the sorted bytes are the same.
    assert sorted(data) == sorted(expected[start:])


def _known_to_the_library(dtype: torch.dtype) -> bool:
    """Complex numbers and the rarer 8-bit types came to safetensors over time."""
    try:
        return load(save({"x": _tensor(dtype, [2], 0)}))["x"].dtype == dtype
    except (KeyError, SafetensorError):
        return False


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in map(torch_dtype, SAFETENSORS_DTYPES.values()) if _known_to_the_library(dtype)], ids=str
)
@pytest.mark.parametrize("shape", [[], [0, 3], [3, 2]], ids=str)
def test_every_type_of_safetensors_goes_both_ways(dtype: torch.dtype, shape: list[int], tmp_path: Path) -> None:
    tensors = {"layer.weight": torch.ones(2, 3), "x": _tensor(dtype, shape, 1)}
    for container in ("torch-zip", "safetensors"):
        _write(tmp_path / container, container, tensors)
        with open_checkpoint(tmp_path / container) as checkpoint:
            assert_same(contents(checkpoint), tensors)


def test_files_of_the_libraries_themselves_are_read(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "a.pt")
    save_file(state_dict(), tmp_path / "a.safetensors", {"format": "pt", "licence": "MIT"})
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert_same(contents(checkpoint), state_dict())
        assert checkpoint.metadata == {}
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert_same(contents(checkpoint), state_dict())
        assert checkpoint.metadata == {"format": "pt", "licence": "MIT"}
        assert (checkpoint.key, checkpoint.extras, checkpoint.notes, checkpoint.document) == ("", {}, (), None)


def test_a_checkpoint_knows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(state_dict(), path)
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.path == path
        assert checkpoint.size_bytes == path.stat().st_size
        assert checkpoint.sha256() == checkpoint.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("container", ["torch-zip", "safetensors"])
def test_tensors_outlive_the_file_but_none_is_read_after_it(container: str, tmp_path: Path) -> None:
    _write(tmp_path / "m", container, state_dict())
    with open_checkpoint(tmp_path / "m") as checkpoint:
        weight = checkpoint.tensor("fc.weight")
        with pytest.raises(CheckpointError, match=r"no tensor is named 'fc\.wieght'"):
            checkpoint.tensor("fc.wieght")
    assert torch.equal(weight, state_dict()["fc.weight"])
    with pytest.raises(CheckpointError, match=r"fc\.weight was requested after the file was closed"):
        checkpoint.tensor("fc.weight")


@pytest.mark.parametrize("container", ["torch-zip", "safetensors"])
def test_threads_may_read_at_once(container: str, tmp_path: Path) -> None:
    tensors = {f"layer{index}.weight": torch.full((50, 50), float(index)) for index in range(40)}
    _write(tmp_path / "m", container, tensors)
    with open_checkpoint(tmp_path / "m") as checkpoint, ThreadPoolExecutor(8) as pool:
        actual = dict(zip(tensors, pool.map(checkpoint.tensor, tensors), strict=True))
    assert_same(actual, tensors)


@pytest.mark.parametrize("container", ["torch-zip", "safetensors"])
def test_a_compressed_file_takes_no_other_key(container: str, tmp_path: Path) -> None:
    _write(tmp_path / "m", container, state_dict(), document="{}")
    with open_checkpoint(tmp_path / "m", key="state_dict") as checkpoint:
        assert checkpoint.key == "state_dict"
    with pytest.raises(CheckpointError, match="key 'model' for a compressed file"):
        open_checkpoint(tmp_path / "m", key="model")


def test_a_safetensors_file_has_no_keys(tmp_path: Path) -> None:
    save_file(state_dict(), tmp_path / "m")
    with open_checkpoint(tmp_path / "m", key="") as checkpoint:
        assert checkpoint.key == ""
    with pytest.raises(CheckpointError, match="a safetensors file has no inner dicts"):
        open_checkpoint(tmp_path / "m", key="model")


def test_tensors_shared_by_one_storage_are_read_from_it(tmp_path: Path) -> None:
    flat = torch.arange(20.0)  # as cuDNN lays out the weights of an LSTM
    tensors = {"a": flat[:12].view(3, 4), "b": flat[12:].view(4, 2)}
    torch.save(tensors, tmp_path / "m")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert_same(contents(checkpoint), tensors)
        assert all(info.alias_of is None for info in checkpoint.tensors.values())


def test_a_tensor_info_refuses_a_negative_dimension() -> None:
    with pytest.raises(CheckpointError, match="a tensor has no negative dimension"):
        TensorInfo(name="w", shape=(2, -3), dtype=FLOAT32)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (2 * 10**9, "2.0 GB")],
)
def test_sizes_are_shown_in_the_unit_that_reads_best(size_bytes: int, text: str) -> None:
    assert shown_size(size_bytes) == text


def test_long_text_is_cut() -> None:
    assert shown("x" * 200) == "x" * 117 + "..."

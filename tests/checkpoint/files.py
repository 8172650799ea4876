"""Files the tests of `mpocompress.checkpoint` read, made by code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mpocompress.checkpoint.checkpoint import Checkpoint


def state_dict() -> dict[str, torch.Tensor]:
    """A small state dict with a matrix, a vector and a counter."""
    generator = torch.Generator().manual_seed(0)
    return {
        "fc.weight": torch.randn(6, 4, generator=generator),
        "fc.bias": torch.randn(6, generator=generator),
        "steps": torch.tensor(7),
    }


def saved(value: object) -> bytes:
    """What torch.save writes for a value."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def rezip(
    source: Path,
    target: Path,
    edit: Callable[[bytes], bytes] = bytes,
    *,
    record: str = "data.pkl",
    deflate: bool = False,
) -> None:
    """Copy a zip with one record edited, its checksum made right again."""
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, edit(data) if name.endswith("/" + record) else data)


def plain_zip(path: Path, *names: str) -> None:
    """A zip with empty files of these names."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


def flip_byte(path: Path, record: str) -> None:
    """Change one byte in the middle of a record, and nothing else."""
    with zipfile.ZipFile(path) as archive:
        info = next(entry for entry in archive.infolist() if entry.filename.endswith("/" + record))
        data = archive.read(info)
    raw = bytearray(path.read_bytes())
    start = raw.index(data, info.header_offset)
    raw[start + len(data) // 2] ^= 0x10
    path.write_bytes(raw)


def contents(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, copied out."""
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}


def assert_same(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names, dtypes, shapes and bits, in any order."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (actual[name], tensor) if t.numel()]
        assert len(bits) == 0 or torch.equal(*bits), name

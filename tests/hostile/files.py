"""Parts hostile files are put together from."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.checkpoint.files import rezip

PLACE = b"X\x04\0\0\0@@@@"
"""What a marker text is in a pickle of protocol 2; hostile instructions take its place."""


def weights() -> dict[str, Tensor]:
    """A state dict with something to compress, so that only what is hostile can be the reason to refuse it."""
    generator = torch.Generator().manual_seed(0)
    return {"fc.weight": torch.randn(64, 64, generator=generator), "fc.bias": torch.zeros(64)}


def saved(folder: Path, value: object, **options: Any) -> Path:
    """What torch.save makes of a value."""
    torch.save(value, folder / "model.pt", **options)
    return folder / "model.pt"


def beside(folder: Path, instructions: bytes) -> Path:
    """A good training checkpoint with a value `x` that these pickle instructions make, one value in all."""
    torch.save({"x": "@@@@", "model": weights()}, folder / "good")

    def put(data: bytes) -> bytes:
        assert data.count(PLACE) == 1
        return data.replace(PLACE, instructions)

    rezip(folder / "good", folder / "model.pt", put)
    (folder / "good").unlink()
    return folder / "model.pt"


def described_by(folder: Path, data: bytes) -> Path:
    """A good file whose description is another pickle, whole."""
    torch.save(weights(), folder / "good")
    rezip(folder / "good", folder / "model.pt", lambda _: data)
    (folder / "good").unlink()
    return folder / "model.pt"


def edited(folder: Path, value: object, old: bytes, new: bytes) -> Path:
    """A saved value, with some bytes of its description replaced."""
    torch.save(value, folder / "good")

    def replace(data: bytes) -> bytes:
        assert old in data, data
        return data.replace(old, new)

    rezip(folder / "good", folder / "model.pt", replace)
    (folder / "good").unlink()
    return folder / "model.pt"


def archive(folder: Path, records: Mapping[str, bytes]) -> Path:
    """A zip of these records, none compressed."""
    with zipfile.ZipFile(folder / "model.pt", "w") as target:
        for name, data in records.items():
            target.writestr(name, data)
    return folder / "model.pt"


class Calls:
    """A value whose pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: object, state: object = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def instructions(value: object, protocol: int = 2) -> bytes:
    """The pickle instructions that make a value, to be put into another pickle."""
    data = pickle.dumps(value, protocol)
    return data[2:-1] if protocol >= 2 else data[:-1]


def name(module: str, function: str) -> bytes:
    """The instruction that asks for a function by its name."""
    return f"c{module}\n{function}\n".encode()


def text(words: str) -> bytes:
    """The instruction that makes a text."""
    data = words.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def call(module: str, function: str, *arguments: str) -> bytes:
    """The instructions that call a function on texts."""
    return name(module, function) + b"(" + b"".join(map(text, arguments)) + b"tR"


def raw(value: object) -> bytes:
    """What torch.save writes for a value, with one record name for all."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.sniff import Form, refusal, sniff
from mpocompress.errors import CheckpointError
from tests.checkpoint.files import plain_zip, saved, state_dict


def _bytes(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def _zip(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        plain_zip(path, *names)

    return make


def _legacy(path: Path, protocol: int) -> None:
    torch.save(state_dict(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "model.py")


def _export(path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),)), path)


# how it is made, what it is, what the message calls it, what the message advises
REFUSED: list[tuple[Callable[[Path], None], Form, str, str]] = [
    (_zip("p/.data/extern_modules", "p/data.pkl"), Form.TORCH_PACKAGE, "a torch.package archive", "state_dict()"),
    (_zip("a.npy", "b.npy"), Form.NUMPY_ZIP, "a NumPy .npz archive", "torch.from_numpy"),
    (_zip("readme.txt"), Form.PLAIN_ZIP, "a zip archive without", "Unpack it"),
    (_zip(), Form.PLAIN_ZIP, "a zip archive without", "Unpack it"),
    (_bytes(saved(state_dict())[:-40]), Form.BROKEN_ZIP, "the start of a zip archive", "Download the file again"),
    (_bytes(b"\n<!DOCTYPE html><html>"), Form.HTML, "a web page", "download the file itself"),
    (_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), Form.LFS_POINTER, "git-lfs", "git lfs pull"),
    (_bytes(b"GGUF\x03\0\0\0"), Form.GGUF, "a GGUF file", "Convert it"),
    (_bytes(b"\x89HDF\r\n\x1a\n\0"), Form.HDF5, "an HDF5 file", "Convert it"),
    (_bytes(gzip.compress(b"x" * 100)), Form.PACKED, "a packed file", "Unpack it"),
    (_tar, Form.PACKED, "a packed file", "Unpack it"),
    (_bytes(b'{"n_layer": 2}'), Form.JSON, "JSON text that is not an index", "Give the file with the weights"),
    (_bytes(b"1234567{"), Form.UNKNOWN, "a file of unknown form", "state_dict()"),  # text, not a header length
    (_bytes(b"\0\x01\x02"), Form.UNKNOWN, "a file of unknown form", "state_dict()"),
    (_bytes(b""), Form.EMPTY, "an empty file", "Download the file again"),
    (Path.mkdir, Form.FOLDER, "an empty folder", "Check the path"),
    (os.mkfifo, Form.SPECIAL, "a device, pipe or socket", "Save it to a file first"),
    (lambda path: None, Form.MISSING, "no such file", "Check the path"),
]


@pytest.mark.parametrize(
    ("make", "form", "found", "action"), REFUSED, ids=[f"{row[1].name}-{index}" for index, row in enumerate(REFUSED)]
)
def test_what_is_not_read_is_named_with_a_way_out(
    make: Callable[[Path], None], form: Form, found: str, action: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    make(path)
    assert sniff(path) is form
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.where == str(path)
    assert found in caught.value.found
    assert action in caught.value.action


@pytest.mark.parametrize("form", sorted({row[1] for row in REFUSED}, key=str))
def test_every_form_that_is_not_read_has_its_words(form: Form) -> None:
    error = refusal(Path("model.pt"), form)
    assert error.found
    assert error.action.endswith(".")


READ: list[tuple[Callable[[Path], None], Form]] = [
    (_bytes(saved(state_dict())), Form.TORCH_ZIP),
    (_export, Form.TORCH_EXPORT),
    (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), path), Form.TORCHSCRIPT),
    *((partial(_legacy, protocol=protocol), Form.LEGACY_TORCH) for protocol in (2, 3, 4, 5)),
    *((_bytes(pickle.dumps({"a": 1}, protocol=protocol)), Form.PICKLE) for protocol in range(6)),
]


@pytest.mark.parametrize(("make", "form"), READ, ids=[f"{row[1].name}-{index}" for index, row in enumerate(READ)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_writes_is_told_apart(make: Callable[[Path], None], form: Form, tmp_path: Path) -> None:
    make(tmp_path / "model.safetensors")
    assert sniff(tmp_path / "model.safetensors") is form


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    save_file(state_dict(), tmp_path / "model.pt")
    torch.save(state_dict(), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.container == "safetensors"
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert checkpoint.container == "torch-zip"
        assert torch.equal(checkpoint.tensor("fc.weight"), state_dict()["fc.weight"])


def test_a_path_that_no_system_takes_is_missing() -> None:
    assert sniff(Path("a\0b")) is Form.MISSING


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_is_said_to_be_that(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(CheckpointError, match="permissions do not let this user read it"):
        open_checkpoint(path)

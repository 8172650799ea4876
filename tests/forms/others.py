"""What is no PyTorch checkpoint, or is packed into something else; each is named, with a way out."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from tests.checkpoint.files import saved as as_bytes
from tests.forms.model import state
from tests.forms.registry import Group

group = Group("Other formats")


@group.refused("a NumPy archive (`.npz`)", "a NumPy .npz archive", "torch.from_numpy")
def numpy_archive(folder: Path) -> Path:
    np.savez(folder / "model.npz", **{name: tensor.numpy() for name, tensor in state().items()})  # type: ignore[arg-type]
    return folder / "model.npz"


@group.refused("a pickle of NumPy arrays", "no state dict", "torch.save")
def pickled_arrays(folder: Path) -> Path:
    (folder / "model.pkl").write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in state().items()}))
    return folder / "model.pkl"


@group.refused("a checkpoint in gzip", "a packed file", "Unpack it")
def gzipped(folder: Path) -> Path:
    (folder / "model.pt.gz").write_bytes(gzip.compress(as_bytes(state()), 1))
    return folder / "model.pt.gz"


@group.refused("a checkpoint in a `.tar.gz`", "a packed file", "Unpack it")
def tarred(folder: Path) -> Path:
    with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
        entry, data = tarfile.TarInfo("model.pt"), as_bytes(state())
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return folder / "model.tar.gz"


@group.refused("a checkpoint in a zip of other files", "a zip archive without a PyTorch checkpoint", "Unpack it")
def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("run/model.pt", as_bytes(state()))
        archive.writestr("run/readme.txt", "a model")
    return folder / "model.zip"


@group.refused("the tar form of torch before 0.1.10", "a tar archive in the format of torch.save", "save it again with")
def tar_of_torch(folder: Path) -> Path:
    with tarfile.open(folder / "model.pt", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            entry, data = tarfile.TarInfo(name), pickle.dumps({"protocol_version": 1000})
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return folder / "model.pt"


HEADERS = {
    "HDF5 (Keras)": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file", "Convert it"),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "a GGUF file", "Convert it"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(100), "file of unknown form", "state_dict()"),
    "ONNX": (b"\x08\x0a\x12\x07pytorch\x1a\x052.1.0:\x10\x0a\x0e" + bytes(50), "file of unknown form", "state_dict()"),
    "a web page": (b"<!DOCTYPE html><html>", "a web page", "download the file itself"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs", "git lfs pull"),
    "an empty file": (b"", "an empty file", "Download the file again"),
}

for title, (start, found, advice) in HEADERS.items():

    @group.refused(title, found, advice)
    def other(folder: Path, start: bytes = start) -> Path:
        (folder / "model.pt").write_bytes(start)
        return folder / "model.pt"


@group.refused("one tensor, not in a dict", "Tensor instead of a dict of tensors", "Save the state dict")
def one_tensor(folder: Path) -> Path:
    torch.save(state()["fc.weight"], folder / "model.pt")
    return folder / "model.pt"

"""safetensors files, shards and folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from tests.forms.model import model, state
from tests.forms.registry import Group

files = Group("safetensors")
group = Group("Folders and shards")


@files.read("a safetensors file", "safetensors")
def single(folder: Path) -> Path:
    save_file(state(), folder / "model.safetensors")
    return folder / "model.safetensors"


@files.read("the same with metadata", "safetensors", note="its metadata is kept")
def with_metadata(folder: Path) -> Path:
    save_file(state(), folder / "model.safetensors", {"format": "pt", "author": "someone"})
    return folder / "model.safetensors"


@files.read("the same named `.pt`", "safetensors")
def renamed(folder: Path) -> Path:
    save_file(state(), folder / "model.pt")
    return folder / "model.pt"


@files.read("the same in bfloat16", "safetensors", dtype=torch.bfloat16)
def in_bfloat16(folder: Path) -> Path:
    save_file(state(torch.bfloat16), folder / "model.safetensors")
    return folder / "model.safetensors"


def shards(folder: Path, stem: str, suffix: str, save: Callable[[dict[str, Tensor], Path], Any]) -> Path:
    """Three shards and their index, named as Hugging Face does."""
    weight_map: dict[str, str] = {}
    tensors = state()
    for number in range(3):
        part = {name: tensor for place, (name, tensor) in enumerate(tensors.items()) if place % 3 == number}
        name = f"{stem}-{number + 1:05}-of-00003{suffix}"
        save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": size_bytes}, "weight_map": weight_map}))
    return index


def configuration(folder: Path) -> None:
    """A config.json as one of Hugging Face's models has it."""
    text = json.dumps({"architectures": ["Net"], "model_type": "net", "hidden_size": 64, "torch_dtype": "float32"})
    (folder / "config.json").write_text(text)


@group.read("shards with an index, the folder given", "safetensors")
def sharded(folder: Path) -> Path:
    shards(folder, "model", ".safetensors", lambda part, path: save_file(part, path, {"format": "pt"}))
    return folder


@group.read("the same, the index given", "safetensors")
def sharded_by_index(folder: Path) -> Path:
    return shards(folder, "model", ".safetensors", lambda part, path: save_file(part, path, {"format": "pt"}))


@group.read("a Hugging Face folder: config.json and one safetensors file", "safetensors")
def hugging_face(folder: Path) -> Path:
    save_file(state(), folder / "model.safetensors", {"format": "pt"})
    configuration(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@group.read("a Hugging Face folder in shards", "safetensors")
def hugging_face_sharded(folder: Path) -> Path:
    configuration(folder)
    return sharded(folder)


@group.read("a Hugging Face folder with pytorch_model.bin", "torch-zip")
def hugging_face_bin(folder: Path) -> Path:
    torch.save(model().state_dict(), folder / "pytorch_model.bin")
    configuration(folder)
    return folder


@group.read("pytorch_model.bin in shards", "torch-zip")
def sharded_bin(folder: Path) -> Path:
    shards(folder, "pytorch_model", ".bin", torch.save)
    configuration(folder)
    return folder


@group.refused("a folder of `torch.distributed.checkpoint`", "a torch distributed checkpoint", "dcp_to_torch")
def distributed(folder: Path) -> Path:
    save_distributed(model().state_dict(), checkpoint_id=folder / "step-3", no_dist=True)
    return folder / "step-3"


@group.refused("a folder without a model", "a folder without weights", "Give the file")
def other_folder(folder: Path) -> Path:
    (folder / "notes.txt").write_text("nothing here")
    return folder

"""The error for a folder without readable weights, with its probable kind and what to do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mpocompress.checkpoint.folders.companions import names_in
from mpocompress.errors import CheckpointError
from mpocompress.text import listed, shown

_SEARCHED = "*.safetensors, *.safetensors.index.json, pytorch_model.bin and pytorch_model.bin.index.json"
_TORCH_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".th")
_OTHER_ENDINGS = (".gguf", ".h5", ".msgpack", ".onnx", ".pb", ".keras", ".tflite", ".npz")
_CONVERT = "Convert them to safetensors with the library that wrote them."


def nothing_to_read(folder: Path, shards: Sequence[str]) -> CheckpointError:
    """Return the error for a folder without weights in a form that is read.

    Args:
        folder: the folder.
        shards: names of shards in it, whose index is missing.
    """
    found, why, action = _looks_like(folder, shards)
    return CheckpointError(where=str(folder), found=found, why=why, action=action)


def _looks_like(folder: Path, shards: Sequence[str]) -> tuple[str, str, str]:
    if shards:
        return (
            f"shards without an index ({listed(shards)})",
            "the index lists which shards belong to the model",
            "Download the file that ends in .index.json as well.",
        )
    names = names_in(folder)
    inside = [name for name in names if (folder / name).is_dir()]
    folders = (folder, *(folder / name for name in inside))
    distributed = next((each for each in folders if (each / ".metadata").exists()), None)
    if distributed is not None:
        inner_name = "" if distributed == folder else f" in {shown(distributed.name)}/"
        merge = (
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(distributed))} model.pt"
        )
        return (
            f"a torch distributed checkpoint{inner_name}",
            "each tensor is spread over several files",
            f"Merge it: `{merge}`, and give model.pt.",
        )
    if "zero_to_fp32.py" in names or any("zero_pp_rank" in name for name in names):
        return (
            "a DeepSpeed checkpoint",
            "each tensor is spread over several files",
            "Merge it with the zero_to_fp32.py that DeepSpeed writes beside it, and give the file that it writes.",
        )
    if {"snapshots", "blobs"} <= set(inside):
        return (
            "a download cache of Hugging Face",
            "it holds a folder for every revision of the model",
            f"Give one of the folders in {shown(str(folder / 'snapshots'))}.",
        )
    torch_files = [name for name in names if name.endswith(_TORCH_ENDINGS) and name not in inside]
    if torch_files:
        return (
            f"no weights under a usual name, but {listed(torch_files)}",
            "a file with another name may not be the model",
            "Give the file.",
        )
    inner = [name + "/" for name in inside if _holds_weights(folder / name)]
    if inner:
        return (
            f"no weights, but some in {listed(inner)}",
            "subfolders are not searched",
            "Give one of those.",
        )
    others = [name for name in names if name.endswith(_OTHER_ENDINGS)]
    if others:
        return (
            f"weights in a form of another library ({listed(others)})",
            "this release cannot read them",
            _CONVERT,
        )
    if not names:
        return "an empty folder", "nothing can be read", "Check the path."
    return "a folder without weights", f"it has none of {_SEARCHED}", "Give the file with the weights."


def _holds_weights(folder: Path) -> bool:
    try:
        return any(name.endswith((*_TORCH_ENDINGS, ".safetensors")) for name in names_in(folder))
    except CheckpointError:
        return False

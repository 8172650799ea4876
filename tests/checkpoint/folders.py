"""Folders of models the tests read, made by code."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG = {"model_type": "lstm", "hidden_size": 64}


def weights() -> dict[str, torch.Tensor]:
    """A state dict with an LSTM, a Linear and a counter."""
    generator = torch.Generator().manual_seed(0)
    return {
        "fc.bias": torch.randn(96, generator=generator),
        "fc.weight": torch.randn(96, 64, generator=generator),
        "lstm.bias_hh_l0": torch.randn(256, generator=generator),
        "lstm.bias_ih_l0": torch.randn(256, generator=generator),
        "lstm.weight_hh_l0": torch.randn(256, 64, generator=generator),
        "lstm.weight_ih_l0": torch.randn(256, 64, generator=generator),
        "steps": torch.tensor(7),
    }


def split(state: Mapping[str, torch.Tensor], shards: int) -> list[dict[str, torch.Tensor]]:
    """A state dict cut into shards, in its order."""
    names = list(state)
    cuts = [round(len(names) * n / shards) for n in range(shards + 1)]
    return [{name: state[name] for name in names[a:b]} for a, b in itertools.pairwise(cuts)]


def make_folder(
    folder: Path,
    parts: Sequence[dict[str, torch.Tensor]],
    *,
    ending: str = "safetensors",
    stem: str | None = None,
    config: Mapping[str, Any] | None = CONFIG,
) -> Path:
    """Write a model as its library would: one part as one file, several as shards with an index."""
    folder.mkdir(exist_ok=True)
    stem = stem or ("model" if ending == "safetensors" else "pytorch_model")
    total = sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part.values())
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}-{number:05d}-of-{len(parts):05d}.{ending}" if len(parts) > 1 else f"{stem}.{ending}"
        if ending == "safetensors":
            save_file(part, folder / name, {"format": "pt"})
        else:
            torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def edit_index(folder: Path, **entries: Any) -> Path:
    """Change entries of the index in a folder; an entry of None goes."""
    (path,) = folder.glob("*.index.json")
    index = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in index.items() if value is not None}))
    return path


def weight_map(folder: Path) -> dict[str, str]:
    """The map in the index of a folder."""
    (path,) = folder.glob("*.index.json")
    shard_of: dict[str, str] = json.loads(path.read_text())["weight_map"]
    return shard_of


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

"""Layout of a checkpoint of several files: the shard of every tensor, and the names of the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INDEX_SUFFIX = ".index.json"
CONFIG = "config.json"
_OURS = ".mpo"
_TORCH_STEM, _STEM = "pytorch_model", "model"  # names that loaders look for, in torch files and in safetensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A folder of a model, or the folder around an index.

    Args:
        folder: the folder.
        stem: name of the weights without endings: `model` for `model.safetensors.index.json`.
        shards: tensor name -> file name of its shard; empty if all weights are in one file.
        companions: names of the files in the folder that are copied with the weights.
        ignored: other entries of the folder that are not part of this checkpoint, sorted.
    """

    folder: Path
    stem: str
    shards: Mapping[str, str]
    companions: tuple[str, ...]
    ignored: tuple[str, ...]


def stem_of(name: str) -> str:
    """Return the name of the weights of a folder, without endings, from the name of their file or index.

    It is `model` for a `pytorch_model`, because safetensors files have that name.

    Example:
        >>> stem_of("model.mpo.safetensors.index.json"), stem_of("pytorch_model.bin"), stem_of("unet.safetensors")
        ('model', 'model', 'unet')
    """
    stem = name.removesuffix(INDEX_SUFFIX).rpartition(".")[0].removesuffix(_OURS)
    return _STEM if stem in ("", _TORCH_STEM) else stem


def file_name(stem: str, *, compressed: bool, shard: int = 1, of: int = 1) -> str:
    """Return the name of a file of weights.

    Args:
        stem: name of the weights without endings.
        compressed: whether they are compressed; loaders without support for cores then do not find the file.
        shard: number of the shard, from 1.
        of: number of shards; 1 for one file.

    Example:
        >>> file_name("model", compressed=True, shard=2, of=3), file_name("model", compressed=False)
        ('model-00002-of-00003.mpo.safetensors', 'model.safetensors')
    """
    number = f"-{shard:05d}-of-{of:05d}" if of > 1 else ""
    return f"{stem}{number}{_OURS if compressed else ''}.safetensors"


def index_name(stem: str, *, compressed: bool) -> str:
    """Return the name of the index of shards.

    Args:
        stem: name of the weights without endings.
        compressed: whether they are compressed.

    Example:
        >>> index_name("model", compressed=True)
        'model.mpo.safetensors.index.json'
    """
    return file_name(stem, compressed=compressed) + INDEX_SUFFIX

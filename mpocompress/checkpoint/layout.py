"""How a checkpoint of several files is laid out: which shard holds which tensor, and what the files are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INDEX_SUFFIX = ".index.json"
CONFIG = "config.json"
_OURS = ".mpo"
_TORCH_STEM, _STEM = "pytorch_model", "model"  # what loaders look for, in the one container and in the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A folder of a model, or the folder around an index.

    Args:
        folder: the folder.
        stem: what its weights are called, without endings: `model` for `model.safetensors.index.json`.
        shards: tensor name -> file name of its shard; empty where all weights are in one file.
        beside: the files that can be carried over with the weights, by name in the folder.
        left: other entries of the folder that are no part of this checkpoint, sorted.
    """

    folder: Path
    stem: str
    shards: Mapping[str, str]
    beside: tuple[str, ...]
    left: tuple[str, ...]


def stem_of(name: str) -> str:
    """Return what the weights of a folder are called, from the name of their file or index.

    Args:
        name: a file name.

    Returns:
        The name without endings; `model` for a `pytorch_model`, since safetensors go by that name.

    Example:
        >>> stem_of("model.mpo.safetensors.index.json"), stem_of("pytorch_model.bin"), stem_of("unet.safetensors")
        ('model', 'model', 'unet')
    """
    stem = name.removesuffix(INDEX_SUFFIX).rpartition(".")[0].removesuffix(_OURS)
    return _STEM if stem in ("", _TORCH_STEM) else stem


def file_name(stem: str, *, compressed: bool, shard: int = 1, of: int = 1) -> str:
    """Return the name of a file of weights.

    Args:
        stem: what the weights are called.
        compressed: whether they are; a loader that knows nothing of cores then does not find the file.
        shard: number of the shard, from 1.
        of: how many shards there are; 1 for one file.

    Returns:
        The name.

    Example:
        >>> file_name("model", compressed=True, shard=2, of=3), file_name("model", compressed=False)
        ('model-00002-of-00003.mpo.safetensors', 'model.safetensors')
    """
    number = f"-{shard:05d}-of-{of:05d}" if of > 1 else ""
    return f"{stem}{number}{_OURS if compressed else ''}.safetensors"


def index_name(stem: str, *, compressed: bool) -> str:
    """Return the name of the index of shards.

    Args:
        stem: what the weights are called.
        compressed: whether they are.

    Returns:
        The name.

    Example:
        >>> index_name("model", compressed=True)
        'model.mpo.safetensors.index.json'
    """
    return file_name(stem, compressed=compressed) + INDEX_SUFFIX

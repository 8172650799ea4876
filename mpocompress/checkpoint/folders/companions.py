"""The files beside the weights of a model: those that are copied with the weights, and the others."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from mpocompress.checkpoint.sniff import Form, sniff
from mpocompress.errors import CheckpointError

MAX_FILE_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 256 * 2**20
MAX_FILES = 1000
_COPIED_FORMS = (Form.JSON, Form.UNKNOWN, Form.EMPTY, Form.HTML)
# Weights, and states of a training run, whatever their content is.
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|pt2|ptl|ckpt|pkl|pickle|joblib|th|tar|h5|hdf5|keras|msgpack|gguf|ggml|onnx|onnx_data|pb"
    r"|tflite|mlmodel|npz|npy|ot|params|pdparams|distcp|nemo|engine|index\.json)$",
    re.IGNORECASE,
)


def names_in(folder: Path) -> tuple[str, ...]:
    """Return the names of all entries of a folder, sorted, without those that start with a dot.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    try:
        return tuple(sorted(name for name in os.listdir(folder) if not name.startswith(".")))
    except OSError as error:
        raise CheckpointError(
            where=str(folder),
            found=f"the folder cannot be listed ({error.strerror})",
            why="the weights in it cannot be found",
            action="Change its permissions.",
        ) from error


def companion_files(folder: Path, weights: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files of a folder that are copied with its weights, and the other entries.

    Copied are small plain files at the top that hold no weights and no state of a training run. A link is followed
    only if it stays in the folder or its download cache, so that no file from elsewhere is copied.

    Args:
        folder: the folder.
        weights: names of the files that are read as weights.

    Returns:
        Names of the files to copy, and of the other entries; names of folders end in a slash.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    copied: list[str] = []
    others: list[str] = []
    total = 0
    for name in names_in(folder):
        path = folder / name
        if name in weights:
            continue
        if path.is_dir():
            others.append(f"{name}/")
        elif _is_copied(path, folder) and len(copied) < MAX_FILES:
            total += path.stat().st_size
            (copied if total <= MAX_TOTAL_BYTES else others).append(name)
        else:
            others.append(name)
    return tuple(copied), tuple(others)


def _is_copied(path: Path, folder: Path) -> bool:
    if _WEIGHTS.search(path.name) or sniff(path) not in _COPIED_FORMS or path.stat().st_size > MAX_FILE_BYTES:
        return False
    home = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    cache = home.parent.parent / "blobs"  # the cache of Hugging Face: snapshots/REVISION/NAME -> ../../blobs/DIGEST
    return real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(cache))

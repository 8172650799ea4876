"""The files beside the weights of a model: which are carried over, and which stay behind."""

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
_CARRIED_FORMS = (Form.JSON, Form.UNKNOWN, Form.EMPTY, Form.HTML)
# Weights, and the states of a training run, whatever their content looks like.
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|pt2|ptl|ckpt|pkl|pickle|joblib|th|tar|h5|hdf5|keras|msgpack|gguf|ggml|onnx|onnx_data|pb"
    r"|tflite|mlmodel|npz|npy|ot|params|pdparams|distcp|nemo|engine|index\.json)$",
    re.IGNORECASE,
)


def names_in(folder: Path) -> tuple[str, ...]:
    """Return the names of everything at the top of a folder.

    Args:
        folder: the folder.

    Returns:
        The names, sorted; those that start with a dot are left out.

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
    """Tell which files of a folder are carried over with its weights.

    Those are small plain files at the top that hold no weights and no state of a training run. A link is followed
    if it stays in the folder or its download cache, so that no file from elsewhere is copied along.

    Args:
        folder: the folder.
        weights: the names of the files being read as weights.

    Returns:
        The names of the files to carry over, and of the other entries; folders end in a slash.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    carried: list[str] = []
    left: list[str] = []
    total = 0
    for name in names_in(folder):
        path = folder / name
        if name in weights:
            continue
        if path.is_dir():
            left.append(f"{name}/")
        elif _is_carried(path, folder) and len(carried) < MAX_FILES:
            total += path.stat().st_size
            (carried if total <= MAX_TOTAL_BYTES else left).append(name)
        else:
            left.append(name)
    return tuple(carried), tuple(left)


def _is_carried(path: Path, folder: Path) -> bool:
    if _WEIGHTS.search(path.name) or sniff(path) not in _CARRIED_FORMS or path.stat().st_size > MAX_FILE_BYTES:
        return False
    home = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    cache = home.parent.parent / "blobs"  # the cache of Hugging Face: snapshots/REVISION/NAME -> ../../blobs/DIGEST
    return real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(cache))

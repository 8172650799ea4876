"""torch.load as this library calls it: nothing runs, the file is mapped, and every failure is put in our words."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mpocompress.errors import CheckpointError
from mpocompress.text import shown

_SAVE_STATE_DICT = (
    "If you trust the file, load it with torch.load(..., weights_only=False) in a program that has the class, and save"
    " only the state dict: torch.save(model.state_dict(), ...)."
)
_NOT_RUN = "reading that could run foreign code, so nothing was loaded or run"

# Patterns on torch's own messages: this is the only place that knows them.
_GLOBAL = re.compile(r"Unsupported global: GLOBAL (\S+)")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module \S+ is blocked")
_OPERAND = re.compile(r"Unsupported operand (\d+)")
_DISTRIBUTED = re.compile(r"``(torch\.\S+?)``.* must be imported")


def load_mapped(path: Path) -> object:
    """Load a torch zip with tensors backed by the mapped file, running nothing from it.

    Args:
        path: a file that `sniff` found to be a torch zip.

    Returns:
        Whatever it holds: containers, plain values, tensors.

    Raises:
        CheckpointError: it holds more than plain values and tensors, or is damaged.
    """
    try:
        with _torch_name(path) as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols right before it refuses them
            root: object = torch.load(name, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # a malformed pickle can make the unpickler raise nearly anything
        raise _explained(path, error) from error
    return root


@contextmanager
def _torch_name(path: Path) -> Iterator[str]:
    """Give a name that torch.load goes by content for: it hands every `.safetensors` to another reader."""
    if not str(path).endswith(".safetensors"):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "checkpoint.pt"
        link.symlink_to(path.resolve())
        yield os.fspath(link)


def _explained(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    if match := _BLOCKED.search(text):
        return CheckpointError(
            where=str(path),
            found=f"its pickle asks for {shown(match[1])}",
            why="no model needs that: the file is made to do harm, and nothing in it was loaded or run",
            action="Get the model from a source you trust.",
        )
    if match := _GLOBAL.search(text) or _DISTRIBUTED.search(text):
        found = f"objects of {shown(match[1])} beside plain tensors (a whole pickled model, or its settings)"
        return CheckpointError(where=str(path), found=found, why=_NOT_RUN, action=_SAVE_STATE_DICT)
    if _OPERAND.search(text):
        found = "a pickle of a newer protocol than torch.save writes by itself"
        return CheckpointError(
            where=str(path),
            found=found,
            why="the reader that runs nothing does not know it",
            action="If you trust the file, load it with torch.load(..., weights_only=False) and save it again with"
            " torch.save and its default protocol.",
        )
    if "Can only" in text or "Trying to call reduce" in text:
        found = "a pickle that builds more than plain values and tensors"
        return CheckpointError(where=str(path), found=found, why=_NOT_RUN, action=_SAVE_STATE_DICT)
    return CheckpointError(
        where=str(path),
        found=f"a torch file that cannot be decoded ({type(error).__name__})",
        why="it is cut off, damaged, or not written by torch.save",
        action="Fetch the file again, or save the model again with torch.save.",
    )

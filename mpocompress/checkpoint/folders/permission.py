"""Whether a folder may be written: never over its input, never over what was not written here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mpocompress.checkpoint.folders.index import MAX_INDEX_BYTES
from mpocompress.checkpoint.folders.json_file import read_json
from mpocompress.checkpoint.layout import INDEX_SUFFIX
from mpocompress.checkpoint.own_format import FILES
from mpocompress.checkpoint.writing.writer import output_refused
from mpocompress.errors import CheckpointError, OutputExistsError
from mpocompress.text import shown


def check_apart(path: Path, *, folder: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output that touches the folder being read, under whatever name or link.

    Args:
        path: the output, a file or a folder.
        folder: the folder of the model being read.
        inputs: the files being read; links may lead them elsewhere.

    Raises:
        OutputError: the output is the folder, is in it, or is a folder with a file that is being read.
    """
    target = Path(os.path.realpath(path))
    if target.is_relative_to(os.path.realpath(folder)):
        raise output_refused(
            path,
            f"the output is the folder being read ({folder}), or is in it",
            "the folder would no longer hold one model",
            "Name an output outside it.",
        )
    inside = next((file for file in inputs if Path(os.path.realpath(file)).is_relative_to(target)), None)
    if inside is not None:
        raise output_refused(
            path,
            f"{shown(inside.name)} is being read from there",
            "replacing the output would remove it",
            "Name another output.",
        )


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that could not or must not be written, before any work is done.

    An empty folder is always taken. Another one is replaced only if `overwrite` is true and it holds what was written
    here and nothing else: it says itself which files those are.

    Args:
        path: the output.
        overwrite: whether a folder that was written here may be replaced.

    Raises:
        OutputExistsError: there is one, and `overwrite` is false.
        OutputError: there is something that is not replaced, or the folder around it is missing or not writable.
    """
    around = Path(os.path.realpath(path)).parent
    if not around.is_dir():
        raise output_refused(path, f"no folder {around}", "the output has nowhere to go", "Create the folder first.")
    if not os.access(around, os.W_OK | os.X_OK):
        raise output_refused(
            path, f"folder {around} is not writable", "nothing can be created in it", "Change its permissions."
        )
    if not path.exists():
        return
    if not path.is_dir():
        raise output_refused(path, "a file", "the output is a folder, as the input is", "Name another output.")
    entries = sorted(os.listdir(path))
    if not entries:
        return
    if not overwrite:
        raise OutputExistsError(
            where=str(path),
            found="the folder exists",
            why="it is not replaced unasked",
            action="Name another output, or ask for it to be overwritten.",
        )
    known = _written_here(path, entries)
    foreign = [name for name in entries if name not in known or not _is_own_file(path / name)]
    if foreign:
        found = f"{shown(foreign[0])} in it was not written here" if known else "a folder that was not written here"
        raise output_refused(
            path, found, "replacing the folder would remove it", "Name another output, or remove it yourself."
        )


def _written_here(folder: Path, entries: Sequence[str]) -> set[str]:
    """The files a folder says were written with it; empty if it does not say so."""
    for name in entries:
        if name.endswith((".safetensors", ".safetensors" + INDEX_SUFFIX)) and _is_own_file(folder / name):
            try:
                files = json.loads(_entry(folder / name))
            except (CheckpointError, SafetensorError, OSError, ValueError, RecursionError):
                continue
            if isinstance(files, list):
                return {file for file in files if isinstance(file, str)}
    return set()


def _entry(path: Path) -> str:
    if path.name.endswith(INDEX_SUFFIX):
        metadata = read_json(path, largest=MAX_INDEX_BYTES, what="index of shards", action="").get("metadata")
        return str(metadata.get(FILES, "")) if isinstance(metadata, dict) else ""
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get(FILES, ""))


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()

"""Checks before a folder is written: never over the input, never over files that mpocompress did not write."""

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
    """Refuse an output that overlaps the folder being read, under any name or link.

    Args:
        path: the output, a file or a folder.
        folder: the folder of the model being read.
        inputs: the files being read, which may be links to other folders.

    Raises:
        OutputError: the output is the folder, is in it, or is a folder that holds a file being read.
    """
    target = Path(os.path.realpath(path))
    if target.is_relative_to(os.path.realpath(folder)):
        raise output_refused(
            path,
            f"the output is the folder being read ({folder}), or is in it",
            "the folder would no longer hold one model",
            "Choose an output outside it.",
        )
    inside = next((file for file in inputs if Path(os.path.realpath(file)).is_relative_to(target)), None)
    if inside is not None:
        raise output_refused(
            path,
            f"{shown(inside.name)} is being read from there",
            "replacing the output would remove it",
            "Choose another output.",
        )


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot or must not be written, before any work is done.

    An empty folder is always accepted. Any other folder is replaced only if `overwrite` is true and mpocompress wrote
    all files in it, according to the list in its weights or index.

    Args:
        path: the output.
        overwrite: whether a folder that mpocompress wrote may be replaced.

    Raises:
        OutputExistsError: the folder exists, and `overwrite` is false.
        OutputError: it holds other files, or its parent folder is missing or not writable.
    """
    parent = Path(os.path.realpath(path)).parent
    if not parent.is_dir():
        raise output_refused(path, f"no folder {parent}", "the output has no parent folder", "Create the folder first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise output_refused(
            path, f"folder {parent} is not writable", "nothing can be created in it", "Change its permissions."
        )
    if not path.exists():
        return
    if not path.is_dir():
        raise output_refused(path, "a file", "the output is a folder, as the input is", "Choose another output.")
    entries = sorted(os.listdir(path))
    if not entries:
        return
    if not overwrite:
        raise OutputExistsError(
            where=str(path),
            found="the folder exists",
            why="an existing folder is replaced only on request",
            action="Choose another output, or allow it to be overwritten.",
        )
    known = _own_files(path, entries)
    foreign = [name for name in entries if name not in known or not _is_plain_file(path / name)]
    if foreign:
        found = (
            f"{shown(foreign[0])} in it was not written by mpocompress"
            if known
            else "a folder that was not written by mpocompress"
        )
        raise output_refused(
            path,
            found,
            "replacing the folder would delete files that it did not write",
            "Choose another output, or delete the folder yourself.",
        )


def _own_files(folder: Path, entries: Sequence[str]) -> set[str]:
    """The files that mpocompress wrote into a folder, according to its weights or index; empty without such a list."""
    for name in entries:
        if name.endswith((".safetensors", ".safetensors" + INDEX_SUFFIX)) and _is_plain_file(folder / name):
            try:
                files = json.loads(_entry(folder / name))
            except (CheckpointError, SafetensorError, OSError, ValueError, RecursionError):
                continue
            if isinstance(files, list):
                return {file for file in files if isinstance(file, str)}
    return set()


def _entry(path: Path) -> str:
    if path.name.endswith(INDEX_SUFFIX):
        metadata = read_json(path, largest=MAX_INDEX_BYTES, kind="index of shards", action="").get("metadata")
        return str(metadata.get(FILES, "")) if isinstance(metadata, dict) else ""
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get(FILES, ""))


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()

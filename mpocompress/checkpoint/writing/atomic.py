"""Write a file or a folder completely or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mpocompress.errors import OutputError

_LONGEST_NAME_BYTES = 200  # file systems allow 255, and a temporary name is longer


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces `path` if the block succeeds, and is discarded otherwise.

    The content is written to a temporary file in the same folder, flushed to the disk and then renamed. Permissions are
    those of a new file; a symbolic link stays, and the file it refers to is replaced.

    Raises:
        OutputError: the system refused; the file that was at `path` is unchanged.
    """
    target = Path(os.path.realpath(path))
    temporary, _ = _temporary_names(target)
    with _as_output_error(path, "the folder"):
        try:
            # open() creates it with the usual permissions: the kernel applies the umask.
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:  # Ctrl-C included
            temporary.unlink(missing_ok=True)
            raise
        _flush(target.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` if the block succeeds, and is discarded otherwise.

    An existing folder is moved aside, and deleted once the new one has its name; a symbolic link stays, and the folder
    it refers to is replaced. The caller flushes the files that it writes.

    Raises:
        OutputError: the system refused; the folder that was at `path` is unchanged.
    """
    target = Path(os.path.realpath(path))
    temporary, aside = _temporary_names(target)
    with _as_output_error(path, "its parent folder"):
        try:
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            _swap(temporary, target, aside)
        except BaseException:  # Ctrl-C included
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _flush(target.parent)


def _temporary_names(target: Path) -> tuple[Path, Path]:
    """Unused names beside an output: for the new content, and for the old."""
    name = os.fsencode(target.name)[:_LONGEST_NAME_BYTES].decode(errors="ignore")  # never half a character
    mark = f".{name}.{secrets.token_hex(4)}"
    return target.with_name(f"{mark}.tmp"), target.with_name(f"{mark}.old")


def _swap(new: Path, target: Path, aside: Path) -> None:
    try:
        if target.exists():
            target.rename(aside)
        new.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _flush(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot flush a folder; the rename is done either way
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _as_output_error(path: Path, folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            where=str(path),
            found=f"writing failed ({error.strerror or error})",
            why="nothing was written, and an existing output is unchanged",
            action=f"Check the free space and the permissions of {folder}.",
        ) from error

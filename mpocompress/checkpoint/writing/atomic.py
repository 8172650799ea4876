"""Writing a file or a folder all or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mpocompress.errors import OutputError

_LONGEST_NAME_BYTES = 200  # file systems take 255, and a passing name is longer


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a stream whose content takes the place of `path` when the block ends well, and vanishes otherwise.

    The content goes to a temporary file in the same folder, is flushed to the disk and then renamed. Permissions are
    those of a newly created file; a symbolic link stays, and the file it names is replaced.

    Args:
        path: the output.

    Yields:
        The stream to write to.

    Raises:
        OutputError: the system refused; what was at `path` is still there.
    """
    target = Path(os.path.realpath(path))
    temporary, _ = _passing(target)
    with _in_words(path, "the folder"):
        try:
            # Created here and now, with the mode open() gives: the kernel takes the umask off.
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
    """Give an empty folder that takes the place of `path` when the block ends well, and vanishes otherwise.

    A folder that is there already is moved aside, and removed once the new one has its name; a symbolic link stays,
    and the folder it names is replaced.

    Args:
        path: the output.

    Yields:
        The folder to write to; whoever writes a file flushes it.

    Raises:
        OutputError: the system refused; what was at `path` is still there.
    """
    target = Path(os.path.realpath(path))
    temporary, aside = _passing(target)
    with _in_words(path, "the folder around it"):
        try:
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            _swap(temporary, target, aside)
        except BaseException:  # Ctrl-C included
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _flush(target.parent)


def _passing(target: Path) -> tuple[Path, Path]:
    """Names beside an output that nothing has: for the new one, and for the old one."""
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
    with suppress(OSError):  # not every file system can flush a folder; the rename is done either way
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _in_words(path: Path, folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            where=str(path),
            found=f"writing failed ({error.strerror or error})",
            why="nothing was written, and what was there before is untouched",
            action=f"Check the free space and the permissions of {folder}.",
        ) from error

"""Writing a folder all or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpocompress.errors import OutputError

_LONGEST_NAME = 200


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
    mark = f".{target.name[:_LONGEST_NAME]}.{secrets.token_hex(4)}"
    temporary, aside = target.with_name(f"{mark}.tmp"), target.with_name(f"{mark}.old")
    try:
        try:
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            _swap(temporary, target, aside)
        except BaseException:  # Ctrl-C included
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _flush(target.parent)
    except OSError as error:
        raise OutputError(
            where=str(path),
            found=f"writing failed ({error.strerror or error})",
            why="nothing was written, and what was there before is untouched",
            action="Check the free space and the permissions of the folder around it.",
        ) from error


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
    with suppress(OSError):  # not every file system can flush a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

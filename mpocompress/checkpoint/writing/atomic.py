"""Writing a file all or nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mpocompress.errors import OutputError

_LONGEST_NAME = 200


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
    temporary = target.with_name(f".{target.name[:_LONGEST_NAME]}.{secrets.token_hex(4)}.tmp")
    try:
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
        with suppress(OSError):  # not every file system can flush a folder; the rename is done either way
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise OutputError(
            where=str(path),
            found=f"writing failed ({error.strerror or error})",
            why="nothing was written, and what was there before is untouched",
            action="Check the free space and the permissions of the folder.",
        ) from error

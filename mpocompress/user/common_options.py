"""Options that commands of several packages share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpocompress.user.options import option

if TYPE_CHECKING:
    from mpocompress.parallel import Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class PickleOptions:
    """Permission to run code that a checkpoint names."""

    allow_pickle: bool = option(
        False, help="Load a pickled checkpoint by RUNNING the code in it: only if you trust it."
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceOptions(PickleOptions):
    """How a checkpoint is read."""

    key: str | None = option(
        None,
        metavar="NAME",
        help="Key of the state dict in a nested checkpoint.",
        default_text="found if only one is possible",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class OverwriteOptions:
    """Permission to replace an output."""

    overwrite: bool = option(
        False,
        flag="--force",
        help="Replace an existing output.",
        details="A folder is replaced only if mpocompress wrote it.",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgressOptions:
    """Progress of the work."""

    progress: Progress | None = option(
        None,
        flag=None,
        help="Function that is called with the name of a step, the number of finished items and their total.",
    )

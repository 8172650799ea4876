"""Resuming a run: its snapshot, and the settings that a resumed run must share with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.options import TrainingOptions
from mpocompress.finetuning.self_generated import SelfGenerated
from mpocompress.finetuning.snapshot import Snapshot, read_snapshot

_NAMED = ("evaluate", "loss", "held_out")
"""Options whose values have a name at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """Where a run is stored while it lasts.

    Args:
        path: the snapshot file; None to store nothing.
        resume: whether to resume the run in it.
        inputs: further settings that a resumed run must share, such as digests of files.
    """

    path: Path | None = None
    resume: bool = False
    inputs: Mapping[str, str] = field(default_factory=dict)

    def read(self, settings: Mapping[str, str]) -> Snapshot | None:
        """Return the run to resume; None to start a new one.

        Args:
            settings: settings of this run, as `run_settings` returns them.

        Raises:
            FinetuneError: there is no snapshot file, or the run in it has other settings.
            CheckpointError: the file cannot be read.
            FormatError: the file is damaged.
        """
        if not self.resume:
            return None
        if self.path is None:
            raise FinetuneError(
                where="resume",
                found="no snapshot",
                why="it stores the run to resume",
                action="Give the snapshot file of that run.",
            )
        return read_snapshot(self.path, settings)


def run_settings(options: TrainingOptions, **others: str) -> dict[str, str]:
    """Return the settings of a run as text, to recognise the same run.

    Args:
        options: options of the run.
        others: further settings.
    """
    values = {declared.name: getattr(options, declared.name) for declared in fields(TrainingOptions)}
    texts = {name: name_of(value) if name in _NAMED else str(value) for name, value in values.items()}
    return {**texts, **others}


def name_of(thing: object) -> str:
    """Return the name of an object that the user gives, for reports; its type if it has none.

    Args:
        thing: any object.

    Returns:
        The name; empty for None.

    Example:
        >>> name_of("net.py:train"), name_of([1, 2]), name_of(None)
        ('net.py:train', 'a list', '')
    """
    if thing is None or isinstance(thing, str):
        return thing or ""
    if isinstance(thing, SelfGenerated):
        return str(thing)
    name = getattr(thing, "__qualname__", None)
    return name if isinstance(name, str) else f"a {type(thing).__name__}"

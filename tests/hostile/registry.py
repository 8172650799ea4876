"""The list of hostile files: each a function that makes one, with what is to become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Make = Callable[[Path, Path], Path]
"""Makes a file in a folder; the second path is that of a canary, a file that must not come to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One hostile file.

    Args:
        make: makes it.
        title: what is hostile about it.
        says: a pattern of the message.
        code: the exit code: 1 for refused, 0 for harmless once read, 3 for harmless and partly left alone.
        command: the command that reads it.
    """

    make: Make
    title: str
    says: str
    code: int = 1
    command: str = "compress"

    def words(self, path: Path) -> list[str]:
        """The command line for a file."""
        if self.command == "compress":
            return ["compress", path.name, "--bond", "2", "--jobs", "1", "--min-side", "2", "-o", "out.pt"]
        return [self.command, path.name, *(["-o", "out.pt"] if self.command == "expand" else [])]


class Cases:
    """A list of hostile files of one kind."""

    def __init__(self) -> None:
        self.all: list[Case] = []

    def refused(self, title: str, says: str, *, command: str = "compress") -> Callable[[Make], Make]:
        """Put a maker on the list, whose file is refused with a message like this."""
        return self._add(title, says, 1, command)

    def harmless(self, title: str, says: str, *, code: int = 0) -> Callable[[Make], Make]:
        """Put a maker on the list, whose file is read with this word on it, and does nothing."""
        return self._add(title, says, code, "compress")

    def _add(self, title: str, says: str, code: int, command: str) -> Callable[[Make], Make]:
        def add(make: Make) -> Make:
            self.all.append(Case(make=make, title=title, says=says, code=code, command=command))
            return make

        return add

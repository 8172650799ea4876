"""What goes to the terminal: reports on stdout, progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from mpocompress.jobs import Progress as ProgressCallback

NARROWEST = 80


def stdout() -> Console:
    """The console that reports go to: as wide as the terminal, 80 columns where there is none and never less.

    A narrower terminal wraps the lines; cutting numbers off would be worse.
    """
    console = Console(file=sys.stdout)
    if console.width < NARROWEST:
        console.width = NARROWEST
    return console


@contextmanager
def progress_bar() -> Iterator[ProgressCallback | None]:
    """A progress bar on stderr while the block runs; nothing where stderr is no terminal."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def show(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield show

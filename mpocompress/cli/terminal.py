"""Output to the terminal: reports on stdout, progress on stderr."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from mpocompress.parallel import Progress as ProgressCallback

NARROWEST = 80
INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended, as in shells: 128 plus the number of the signal."""


class _Console(Console):
    """A console that leaves the handling of a closed pipe to `printing`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@contextmanager
def printing(written: str | None = None) -> Iterator[None]:
    """Print a result in the block, after the work is done: a failure to print does not undo the written output.

    A reader that has gone, as of `| head`, wants no more and hears nothing.

    Args:
        written: the output; None where what is printed is all there is.

    Raises:
        click.ClickException: nothing was written, and the result cannot be printed either.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go()
    except OSError as error:
        reason = f"cannot be printed ({error.strerror})"
        if written is None:
            _let_go()
            raise click.ClickException(f"the result {reason}; nothing was written.") from error
        with suppress(OSError):
            click.echo(f"{written} was written, but its report {reason}.", err=True)
        _let_go()


def _let_go() -> None:
    """Drop the output that could not be written, because it would fail again when the program ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def stdout() -> Console:
    """The console for reports: as wide as the terminal, at least 80 columns, and 80 without a terminal.

    A narrower terminal wraps the lines; cutting numbers off would be worse.
    """
    console = _Console(file=sys.stdout)
    if console.width < NARROWEST:
        console.width = NARROWEST
    return console


@contextmanager
def progress_bar() -> Iterator[ProgressCallback | None]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal."""
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

"""How measurements are shown: rich tables at 100 columns, Markdown, and what the figures depend on."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from benchmarks.timing import Clock
from mpocompress.benchmarking.machine import processor

WIDTH = 100


def command_line(script: str) -> str:
    """The command that was given, to be shown beside its figures.

    Args:
        script: path of the script from the root of the repository, or `-m` and the module.

    Returns:
        The command as typed in a shell.
    """
    return shlex.join(["python", *script.split(), *sys.argv[1:]])


def environment(versions: Sequence[str], clock: Clock) -> dict[str, str]:
    """What figures depend on, in words.

    Args:
        versions: names and versions of the tools.
        clock: what was measured.

    Returns:
        name -> words.
    """
    return {
        "processor": processor(),
        "python": platform.python_version(),
        "tools": ", ".join(versions),
        "threads": "1",
        "clock": "processor time" if clock == "cpu" else "time on the wall",
    }


def rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> Table:
    """A table for the terminal, its first column left aligned.

    Args:
        title: printed above it.
        header: names of the columns.
        rows: cells.
        width: columns of the terminal.

    Returns:
        The table, to be printed by rich.
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, width=width, pad_edge=False
    )
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The same table as lines of Markdown, its title in bold.

    Args:
        title: printed above it.
        header: names of the columns.
        rows: cells.

    Yields:
        Lines without their ends.
    """
    yield from ("", f"**{title}**", "")
    yield f"| {' | '.join(header)} |"
    yield f"|---|{'---:|' * (len(header) - 1)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"

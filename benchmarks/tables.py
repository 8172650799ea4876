"""Output of the benchmarks: rich tables at 100 columns, Markdown, and the environment of the figures."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from benchmarks.timing import Clock
from mpocompress.benchmarking.bench import processor

WIDTH = 100


def command_line(script: str) -> str:
    """The command that is running, as typed in a shell.

    Args:
        script: Path of the script from the root of the repository, or `-m` and the module.
    """
    return shlex.join(["python", *script.split(), *sys.argv[1:]])


def environment(versions: Sequence[str], clock: Clock) -> dict[str, str]:
    """Processor, versions, threads and clock of the measurements, as text by name.

    Args:
        versions: Names and versions of the tools.
        clock: Processor time or wall time.
    """
    return {
        "processor": processor(),
        "python": platform.python_version(),
        "tools": ", ".join(versions),
        "threads": "1",
        "clock": "processor time" if clock == "cpu" else "wall time",
    }


def rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> Table:
    """A table for the terminal with the first column left aligned."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, width=width, pad_edge=False
    )
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown, with its title in bold."""
    yield from ("", f"**{title}**", "")
    yield f"| {' | '.join(header)} |"
    yield f"|---|{'---:|' * (len(header) - 1)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"

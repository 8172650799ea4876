"""Write `docs/reference/cli.md` from the help text of every command, or check that it is up to date.

Run as `python -m tools.cli_reference` (or `make reference`); `--check` writes nothing and exits with 1 if the page
differs from the help texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from tools.pages import write_or_check

PROGRAM = "mpocompress"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
WIDTH = 80  # columns of the help text, independent of the terminal

INTRODUCTION = """\
<!-- Written by `make reference` from the help texts of the commands: change these, not this page. -->

# Command line

The output of `--help` for every command. See also the [exit codes](exit-codes.md).
"""


def walk(command: click.Command, name: str = PROGRAM, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help text of a command, then those of the commands below it that are not hidden."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None and not child.hidden:
                yield from walk(child, child_name, context)


def render(command: click.Command) -> str:
    """Return the page for a command and all those below it."""
    sections = [f"## `{name}`\n\n```text\n{help_text.rstrip()}\n```\n" for name, help_text in walk(command)]
    return "\n".join([INTRODUCTION, *sections])


def main(command: click.Command, page: Path, arguments: list[str]) -> int:
    """Write or check the page; return the exit code."""
    return write_or_check(page, render(command), arguments, program="tools.cli_reference", description=__doc__)


if __name__ == "__main__":
    from mpocompress.cli.main import cli

    sys.exit(main(cli, PAGE, sys.argv[1:]))

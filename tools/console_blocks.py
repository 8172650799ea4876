"""Run the ```console blocks of the documentation and compare what they print with what the page shows.

A block is a series of commands, each on a line that starts with `$ mpocompress`, each followed by the lines it prints:

    $ mpocompress model.pt --bond 16 -o small.pt
    ...
    $ mpocompress inspect missing.pt  # exit 1

A command with no lines below it may print anything. `...` stands for any text, line ends included. A command has to end
with exit code 0, or with the number in its `# exit N` comment. A line that ends in a backslash goes on in the next one,
and `> FILE` at the end of a command sends its output (not its errors) to a file. Anything else belongs in a block of
another language, such as ```sh, which is not run.
"""

from __future__ import annotations

import contextlib
import difflib
import doctest
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

from sybil import Example

PROGRAM = "mpocompress"
CHECKPOINT = Path(__file__).resolve().parents[1] / "examples" / "fashion" / "fashion.pt"
BESIDE_CHECKPOINT = ("net.py", "heldout.safetensors")
"""Files of the checkpoint's folder that are copied under their own names."""
PROMPT = "$ "
EXIT_COMMENT = re.compile(r"\s+# exit (?P<code>\d+)\s*$")
ENVIRONMENT = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}

Entry = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a block, what it has to print, and the exit code it has to end with."""

    arguments: tuple[str, ...]
    output_file: str | None
    exit_code: int
    expected: str  # empty: anything will do

    def __post_init__(self) -> None:
        """Refuse what is not a command of this program."""
        if not self.arguments or self.arguments[0] != PROGRAM:
            shown = shlex.join(self.arguments)
            raise ValueError(f"`{shown}`: a console block runs only `{PROGRAM}`; show other commands in a ```sh block")


def parse(block: str) -> Iterator[Command]:
    """Yield the commands of a block in order.

    Args:
        block: The text between the fences.

    Yields:
        Each command with the lines expected below it.

    Raises:
        ValueError: If the block starts with something else than a command, or runs another program.
    """
    line_source = iter(block.rstrip().splitlines())
    current: str | None = None
    expected: list[str] = []
    for line in line_source:
        if line.startswith(PROMPT):
            if current is not None:
                yield parse_command(current, expected)
            current, expected = line.removeprefix(PROMPT), []
            while current.endswith("\\"):
                current = current.removesuffix("\\") + next(line_source, "").lstrip()
        elif current is None:
            raise ValueError(f"`{line}`: a console block starts with a line `{PROMPT}{PROGRAM} ...`")
        else:
            expected.append(line)
    if current is not None:
        yield parse_command(current, expected)


def parse_command(line: str, expected: list[str]) -> Command:
    """Return the command of one line (its prompt taken off) and the output lines below it."""
    comment = EXIT_COMMENT.search(line)
    words = shlex.split(line[: comment.start()] if comment else line, comments=True)
    output_file = None
    if len(words) >= 2 and words[-2] == ">":
        output_file = words[-1]
        words = words[:-2]
    return Command(
        arguments=tuple(words),
        output_file=output_file,
        exit_code=int(comment["code"]) if comment else 0,
        expected="\n".join(line.rstrip() for line in expected).strip("\n"),
    )


def run(command: Command, entry: Entry) -> tuple[int, str]:
    """Run a command in this process, in the current folder.

    Args:
        command: What to run.
        entry: The program's entry point, which reads `sys.argv` and returns or raises its exit code.

    Returns:
        The exit code, and what a terminal would have shown: output and errors as they came.
    """
    terminal: TextIO = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.ExitStack() as stack:
        output = terminal
        if command.output_file is not None:
            output = stack.enter_context(Path(command.output_file).open("w", encoding="utf-8"))
        stack.enter_context(mock.patch.dict(os.environ, ENVIRONMENT))
        stack.enter_context(mock.patch.object(sys, "argv", list(command.arguments)))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(terminal))
        try:
            result = entry()
        except SystemExit as stop:
            result = stop.code
        output.flush()
    terminal.seek(0)
    text = "\n".join(line.rstrip() for line in terminal.read().splitlines()).strip("\n")
    if isinstance(result, str):
        return 1, f"{text}\n{result}"  # `sys.exit("message")`
    return (result if isinstance(result, int) else 0), text


def check(command: Command, entry: Entry) -> str | None:
    """Run a command and return what is wrong with it, or None."""
    exit_code, printed = run(command, entry)
    shown = shlex.join(command.arguments)
    if exit_code != command.exit_code:
        return f"`{shown}` ended with exit code {exit_code}, not {command.exit_code}, and printed:\n{printed}"
    if not command.expected:
        return None
    if doctest.OutputChecker().check_output(command.expected + "\n", printed + "\n", doctest.ELLIPSIS):
        return None
    difference = difflib.unified_diff(
        command.expected.splitlines(), printed.splitlines(), "the page", "the command", lineterm=""
    )
    return f"`{shown}` printed something else than the page shows:\n" + "\n".join(difference)


def evaluate(example: Example) -> str | None:
    """Run one console block for sybil; return what is wrong with it, or None."""
    from mpocompress.cli.main import main  # noqa: PLC0415 - a page without commands needs no command line

    for command in parse(example.parsed):
        if problem := check(command, main):
            return problem
    return None


def enter_workspace(namespace: dict[str, Any]) -> None:
    """Make a folder with the bundled checkpoint as `model.pt`, its `net.py` and images, and make it the current one.

    Args:
        namespace: The names of one document, all of whose examples share the folder; the way back is kept in it.
    """
    folder = tempfile.TemporaryDirectory(prefix="mpocompress-docs-")
    if CHECKPOINT.is_file():
        shutil.copyfile(CHECKPOINT, Path(folder.name) / "model.pt")
        for name in BESIDE_CHECKPOINT:
            shutil.copyfile(CHECKPOINT.with_name(name), Path(folder.name) / name)
    namespace["_workspace"] = (folder, Path.cwd())
    os.chdir(folder.name)


def leave_workspace(namespace: dict[str, Any]) -> None:
    """Go back to where `enter_workspace` was called from, and remove the folder."""
    folder, origin = namespace.pop("_workspace")
    os.chdir(origin)
    folder.cleanup()

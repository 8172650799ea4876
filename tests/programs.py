"""Child processes and threads of the tests, each with a time limit; nothing else in the tests starts a process."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 300
"""Many times what any program takes on a busy machine."""

WALL_S = 120
"""The same for one command, most of which take less than a second."""

CLOSED_PIPE = "closed pipe"
"""In place of the path of an output: a pipe that nobody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One command line.

    Args:
        words: The arguments of `mpocompress`.
        folder: The current folder of the command.
        stdout: The file or device for its output, or `CLOSED_PIPE`.
        stderr: The same for its messages.
        environment: Environment variables to set.
        before: Python code to run first.
        largest_file_bytes: Limits the size of files; a write beyond it fails like one to a full disk.
        full_exit: Whether the interpreter ends as usual, with exit handlers and a check of its output streams.
    """

    words: list[str]
    folder: str
    stdout: str
    stderr: str
    environment: dict[str, str] = field(default_factory=dict)
    before: str = ""
    largest_file_bytes: int | None = None
    full_exit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a program.

    Args:
        code: Its exit code; negative if a signal ended it.
        out: Its output.
        err: Its messages.
    """

    code: int
    out: str
    err: str


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of this process with some variables set; modules of the repository can be imported."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}


def run_python(arguments: Iterable[object], *, folder: Path = ROOT, **variables: str) -> Outcome:
    """Run Python with arguments to its end.

    Args:
        arguments: After the interpreter, such as `-m`, `mpocompress`.
        folder: The current folder of the program.
        variables: Environment variables to set.

    Raises:
        subprocess.TimeoutExpired: The program took `LIMIT_S` seconds, and was ended.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


def run_threads(functions: Iterable[Callable[[], object]]) -> None:
    """Call functions at the same time, each in a thread of its own, and wait for all.

    Raises:
        AssertionError: One failed, or took longer than `LIMIT_S` seconds.
    """
    failures: list[BaseException] = []

    def call(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as failure:  # noqa: BLE001 - the test has to see it
            failures.append(failure)

    threads = [threading.Thread(target=call, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


class CommandServer:
    """Runs `mpocompress` commands in copies of one process that has imported all they need.

    Args:
        process: The process of `tests.fork_server`.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self,
        *words: str,
        folder: Path,
        stdout: str | None = None,
        stderr: str | None = None,
        variables: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Outcome:
        """Run one command.

        Args:
            words: Its arguments.
            folder: Its current folder.
            stdout: Where its output goes instead of into the outcome: a path, or `CLOSED_PIPE`.
            stderr: The same for its messages.
            variables: Environment variables to set.
            options: Other fields of `Request`.

        Raises:
            TimeoutError: There was no answer.
        """
        with tempfile.TemporaryDirectory() as name:
            out, err = Path(name) / "stdout", Path(name) / "stderr"
            request = Request(
                words=list(words),
                folder=str(folder),
                stdout=stdout or str(out),
                stderr=stderr or str(err),
                environment=dict(variables or {}),
                **options,
            )
            code = int(self._answer(json.dumps(asdict(request))))
            shown, messages = (path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err))
        return Outcome(code=code, out=shown, err=messages)

    def _answer(self, line: str) -> str:
        requests, answers = _pipe(self._process.stdin), _pipe(self._process.stdout)
        requests.write(line + "\n")
        requests.flush()
        if not select.select([answers], [], [], 2 * WALL_S)[0]:
            raise TimeoutError(f"no answer within {2 * WALL_S} s to {line}")
        return answers.readline()


@contextmanager
def command_server() -> Iterator[CommandServer]:
    """Start a process that runs commands, and end it with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield CommandServer(process)
        _pipe(process.stdin).close()
        process.wait(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait(timeout=LIMIT_S)
        _pipe(process.stdout).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream

"""Runs command lines one at a time, each in a copy of this process with limited memory, processor time and time.

The tests start this file once, as a program: importing torch takes longer than most command lines. Each line of its
input is a JSON object with the fields of `tests.programs.Request`; the answer is a line with the exit code, which is
negative if a signal ended the command.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import torch

from mpocompress.cli.main import main
from tests.programs import CLOSED_PIPE, WALL_S, Request

MEMORY_BYTES = 2 * 2**30
"""The memory of a command beyond what is loaded: more than any needs, a hundredth of what some files ask for."""

CPU_S = 30
"""Processor time of a command, far more than any takes; only endless loops reach it."""


def limit_resources(largest_file_bytes: int | None) -> None:
    """Limit this process: memory above what it has now, processor time, time, and files if asked."""
    status = Path("/proc/self/statm")
    if status.exists():
        pages = int(status.read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(WALL_S)
    if largest_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails in place of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))


def redirect(descriptor: int, output: str) -> None:
    """Make a descriptor write to a path, or to a pipe that nobody reads."""
    if output == CLOSED_PIPE:
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(write, descriptor)
    os.close(write)


def run(request: Request) -> NoReturn:
    """Run a command line in this process and exit with its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests run with the signal ignored
    redirect(1, request.stdout)
    redirect(2, request.stderr)
    os.chdir(request.folder)
    os.environ.update(request.environment)
    sys.argv = ["mpocompress", *request.words]
    limit_resources(request.largest_file_bytes)
    exec(request.before, {})
    main()
    raise SystemExit


def run_to_end(request: Request) -> NoReturn:
    """Run a command line and end the process, at once if asked: torch takes long to be unloaded."""
    if request.full_exit:
        run(request)
    code = 70
    try:
        run(request)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:  # noqa: BLE001 - whatever escapes is what the tests look for
        sys.excepthook(type(error), error, error.__traceback__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def import_all() -> None:
    """Run the commands once, so that a copy starts with everything that they import."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        torch.save({"fc.weight": torch.eye(64)}, "model.pt")
        for words in (
            ["model.pt", "--bond", "2", "-o", "small.pt"],
            ["plan", "model.pt"],
            ["inspect", "small.pt"],
            ["expand", "small.pt", "-o", "dense.pt"],
        ):
            sys.argv = ["mpocompress", *words]
            with contextlib.suppress(SystemExit):
                main()
        os.chdir(before)


def serve() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)  # threads do not survive in a copy
    import_all()
    gc.freeze()  # a collection in a copy would touch, and so copy, all memory
    for line in sys.stdin:
        request = Request(**json.loads(line))
        child = os.fork()
        if child == 0:
            run_to_end(request)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    serve()

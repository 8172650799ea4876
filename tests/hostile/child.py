"""Commands run one by one in processes of their own, with memory and time that end.

The tests start this file once, as a program: importing torch takes longer than most cases. For every line of its
input, an object with the arguments of `run`, it runs the command line in a copy of itself and answers with a line.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch

import mpocompress.cli.render
import mpocompress.compression.compress  # noqa: F401 (both are imported here, so that a copy starts with all it needs)
from mpocompress.cli.main import main

MEMORY_BYTES = 2 * 2**30
"""More than any case may need beside what is loaded anyway; a hundredth of what some files ask for."""

CPU_S = 30
"""Far more than any case takes, so that only what would not end comes to it."""


def limit(largest_file_bytes: int | None) -> None:
    """Bound this process from here on: memory above what it has now, processor time, and files where asked."""
    used = Path("/proc/self/statm")
    if used.exists():
        pages = int(used.read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if largest_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails in place of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))


def run(words: list[str], folder: str, largest_file_bytes: int | None) -> NoReturn:
    """Run one command line in a folder, what it prints going to files, and end the process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(Path(folder) / "work")
    sys.argv = ["mpocompress", *words]
    limit(largest_file_bytes)
    code = 70
    try:
        main()
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:  # noqa: BLE001 (whatever escapes is what the tests look for)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)  # threads do not survive into a copy
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(**request)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    serve()

"""The program that runs hostile files through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command did.

    Args:
        code: its exit code; negative when a signal ended it.
        out: what it printed.
        err: what it complained of.
    """

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def child() -> Iterator[subprocess.Popen[str]]:
    """The program; it runs as long as there are tests."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.child"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder a command runs in."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def run(child: subprocess.Popen[str], work: Path) -> Run:
    """Run a command line in the folder `work`, with memory and time that end."""

    def call(*words: str, largest_file_bytes: int | None = None) -> Outcome:
        assert child.stdin is not None
        assert child.stdout is not None
        request = {"words": words, "folder": str(work.parent), "largest_file_bytes": largest_file_bytes}
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        code = int(child.stdout.readline())
        out, err = ((work.parent / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        for name in ("stdout", "stderr"):
            (work.parent / name).unlink()
        return Outcome(code=code, out=out, err=err)

    return call

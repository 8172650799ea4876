"""Runs hostile files through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import CommandServer, Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return the folder that a command runs in."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def run(commands: CommandServer, work: Path) -> Run:
    """Return a function that runs a command line in the folder `work`, with limited memory and time."""

    def call(*words: str, largest_file_bytes: int | None = None) -> Outcome:
        return commands.run(*words, folder=work, variables={"COLUMNS": "200"}, largest_file_bytes=largest_file_bytes)

    return call

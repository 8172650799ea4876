"""Ranks of processes that were started together."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpocompress.finetuning.process_rank import is_rank_zero, world_size


@pytest.mark.parametrize(
    ("environment", "size", "is_zero"),
    [
        ({}, 1, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, 2, False),
        ({"RANK": "1"}, 1, True),
    ],
)
def test_ranks_are_read_from_the_environment(
    environment: dict[str, str], size: int, is_zero: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert (world_size(), is_rank_zero()) == (size, is_zero)


def test_ranks_are_known_without_torch() -> None:
    script = (
        "import sys, mpocompress.finetuning.process_rank as rank; rank.is_rank_zero(); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0

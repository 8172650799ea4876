"""Processes that train together: the weights of one that takes as many batches, and one end for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.distributed import Team, join_team
from tests.finetuning.runs import batches, pair, tuned, values
from tests.finetuning.together import model

ROOT = Path(__file__).resolve().parents[2]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
"""Gradients are added in another order."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes made of the same data."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.finetuning.together", str(folder)],
        cwd=ROOT,
        env={**os.environ, "MPOCOMPRESS_EXECUTION": "modelled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "small.run").exists(), "the run that was interrupted is kept"
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("name", "each"), [("plain", 2), ("spare", 4)])
def test_two_processes_train_what_one_does_with_as_many_batches(
    name: str, each: int, outcomes: list[dict[str, Any]]
) -> None:
    student, teacher = model(spare=name == "spare")
    before = values(student)
    report = tuned(student, batches(), teacher=teacher, batches_per_step=each).report

    for found in (one[name] for one in outcomes):
        for path, value in values(student).items():
            torch.testing.assert_close(found["weights"][path], value, **CLOSE)
            assert path.startswith("spare") == torch.equal(value, before[path])
        assert (found["steps"], found["samples"]) == (6, report.samples)
    assert [one[name]["told"] for one in outcomes] == [[1, 2, 3, 4, 5, 6], []], "only one of them speaks"
    assert all(
        torch.equal(value, outcomes[1][name]["weights"][path]) for path, value in outcomes[0][name]["weights"].items()
    )


def test_ctrl_c_in_one_process_ends_them_all_at_the_same_step(outcomes: list[dict[str, Any]]) -> None:
    first, second = (one["stopped"] for one in outcomes)

    assert (first["why"], second["why"]) == ("interrupted", "interrupted")
    assert first["steps"] == second["steps"] < 100
    assert all(torch.equal(value, second["weights"][path]) for path, value in first["weights"].items())


def test_a_step_has_as_many_batches_for_every_process(outcomes: list[dict[str, Any]]) -> None:
    for one in outcomes:
        assert one["odd"].startswith("batches_per_step: got 3 for 2 processes; every process takes the same number")


def test_a_process_by_itself_is_a_team() -> None:
    found = join_team(torch.device("cpu"))
    assert found == Team(rank=0, size=1)
    assert found.is_rank_zero
    assert (found.all_reduce_sum(1.5), found.broadcast(lambda: {"a": 1})) == (1.5, {"a": 1})
    layer = nn.Linear(2, 2)
    found.broadcast_tensors([layer.weight])
    assert found.wrap(layer, has_unused=False) is layer
    assert not Team(rank=1, size=2).is_rank_zero


def test_others_that_cannot_be_reached_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    student, teacher = pair()
    before = values(student)

    with pytest.raises(FinetuneError, match=r"distributed training: .*; WORLD_SIZE announces several processes"):
        tuned(student, batches(), teacher=teacher)
    assert all(torch.equal(one, before[name]) for name, one in values(student).items())

"""Processes that train together: the weights of one that takes as many batches, and one end for all."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpocompress
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.cli.main import main
from mpocompress.errors import FinetuneError
from mpocompress.finetuning.distributed import Team, join_team
from mpocompress.layers.selection import Selection
from tests.finetuning.runs import batches, pair, plain, tuned, values
from tests.finetuning.together import COMMAND, model
from tests.inspecting import report_in
from tests.programs import ROOT, run_python

pytestmark = pytest.mark.slow

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
"""Gradients are added in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What two processes did.

    Args:
        folder: The folder of their files.
        out: Their output.
        results: What each saved, by rank.
    """

    folder: Path
    out: str
    results: list[dict[str, Any]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Run `tests.finetuning.together` in two processes."""
    folder = tmp_path_factory.mktemp("together")
    fashion = ROOT / "examples" / "fashion" / "fashion.pt"
    mpocompress.compress(fashion, folder / "fashion-small.pt", truncation=mpocompress.Truncation(keep=0.25))
    torch.save(pair(plain)[1].state_dict(), folder / "model.pt")
    mpocompress.compress(
        folder / "model.pt",
        folder / "small.pt",
        truncation=mpocompress.Truncation(max_bond=3),
        selection=Selection(min_side=8),
    )
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.finetuning.together"]
    outcome = run_python([*words, folder], MPOCOMPRESS_EXECUTION="modelled")
    assert outcome.code == 0, outcome.err
    results = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return Launch(folder=folder, out=outcome.out, results=results)


@pytest.mark.parametrize(("name", "batches_per_step"), [("plain", 2), ("spare", 4)])
def test_two_processes_train_what_one_does_with_as_many_batches(
    name: str, batches_per_step: int, launch: Launch
) -> None:
    student, teacher = model(spare=name == "spare")
    before = values(student)
    report = tuned(student, batches(), teacher=teacher, batches_per_step=batches_per_step).report

    first, second = (results[name] for results in launch.results)

    for result in (first, second):
        for path, value in values(student).items():
            torch.testing.assert_close(result["weights"][path], value, **CLOSE)
            assert path.startswith("spare") == torch.equal(value, before[path])
        assert (result["steps"], result["samples"]) == (6, report.samples)
    assert (first["reported steps"], second["reported steps"]) == ([1, 2, 3, 4, 5, 6], [])
    assert all(torch.equal(value, second["weights"][path]) for path, value in first["weights"].items())


def test_ctrl_c_in_one_process_ends_them_all_at_the_same_step(launch: Launch) -> None:
    first, second = (results["interrupted"] for results in launch.results)

    assert (first["stopped"], second["stopped"]) == ("interrupted", "interrupted")
    assert first["steps"] == second["steps"] < 100
    assert all(torch.equal(value, second["weights"][path]) for path, value in first["weights"].items())
    assert (launch.folder / "interrupted.run").exists()


def test_a_step_has_as_many_batches_for_every_process(launch: Launch) -> None:
    for results in launch.results:
        assert results["odd"].startswith("batches_per_step: got 3 for 2 processes; every process takes the same number")


def tensors(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}


def test_the_command_in_two_processes_does_what_it_does_in_one(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(launch.folder)
    monkeypatch.setattr(sys, "argv", ["mpocompress", *COMMAND, "--batches-per-step", "2", "-o", "one.pt"])
    with pytest.raises(SystemExit) as end:
        main()

    small, one, two = (launch.folder / name for name in ("small.pt", "one.pt", "two.pt"))
    assert [end.value.code, *(results["exit code"] for results in launch.results)] == [0, 0, 0]
    assert launch.out.count("Wrote two.pt") == 1
    before, after_one, after_two = tensors(small), tensors(one), tensors(two)
    for name, value in after_one.items():
        change = (value - before[name]).norm()
        assert (after_two[name] - value).norm() <= 1e-3 * change, name
    assert report_in(two).finetuning[0].batches_per_step == 2


def test_the_fsdp_example_gives_the_weights_that_one_process_gives(launch: Launch, tmp_path: Path) -> None:
    example: Any = import_module("examples.fsdp.train")
    small, tuned, alone = launch.folder / "fashion-small.pt", launch.folder / "fashion-tuned.pt", tmp_path / "alone.pt"
    student = mpocompress.load(small, example.Classifier())
    start = {name: value.clone() for name, value in student.state_dict().items()}
    example.train(student)
    report = mpocompress.save(student, alone)
    expected, result = (mpocompress.load(path, example.Classifier()).state_dict() for path in (alone, tuned))

    assert [matrix.bonds for matrix in report.compressed] == [matrix.bonds for matrix in report_in(small).compressed]
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        # Both sum a batch in another order; Adam divides gradients by their size, so what is lost is a share of a step.
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-5)
        assert (value - start[name]).abs().max() > 1e-3


def test_a_process_by_itself_is_a_team() -> None:
    team = join_team(torch.device("cpu"))
    assert team == Team(rank=0, size=1)
    assert team.is_rank_zero
    assert (team.all_reduce_sum(1.5), team.broadcast(lambda: {"a": 1})) == (1.5, {"a": 1})
    layer = nn.Linear(2, 2)
    team.broadcast_tensors([layer.weight])
    assert team.wrap(layer, has_unused=False) is layer
    assert not Team(rank=1, size=2).is_rank_zero


def test_processes_that_cannot_be_reached_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    student, teacher = pair()
    before = values(student)

    with pytest.raises(FinetuneError, match=r"distributed training: .*; WORLD_SIZE is larger than 1"):
        tuned(student, batches(), teacher=teacher)
    assert all(torch.equal(value, before[name]) for name, value in values(student).items())

"""What each of two processes runs that torchrun starts: every test with several processes, in one launch.

The results of a process are written to `RANK.pt` in the folder that is given as argument.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpocompress.cli.main import main as run_command_line
from tests.finetuning.runs import batches, pair, tuned

COMMAND = ["finetune", "small.pt", "--model", "tests.finetuning.runs:plain", "--data", "tests.finetuning.runs:batches"]
COMMAND += ["--precision", "float32", "--steps", "8"]
"""A command line for a folder with a compressed file of that model."""


class Spare(nn.Module):
    """Has a layer without effect on the outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.spare = inner, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def model(spare: bool) -> tuple[nn.Module, nn.Module]:
    student, teacher = pair()
    torch.manual_seed(0)
    return Spare(student) if spare else student, teacher


def interrupted_batches(rank: int) -> Iterator[Tensor]:
    """Yield batches for ever; process 1 is interrupted at the 50th."""
    for number in range(10_000):
        if number == 50 and rank == 1:
            signal.raise_signal(signal.SIGINT)
        yield batches(1)[0]


def run_example(folder: Path, rank: int) -> None:
    """Run `examples/fsdp/train.py`.

    Its processes meet in a file: in the store of torchrun, the next group would read the addresses of this one.
    """
    sys.argv = ["train.py", str(folder / "fashion-small.pt"), str(folder / "fashion-tuned.pt")]
    example: Any = import_module("examples.fsdp.train")
    meeting = (folder / "meeting").as_uri()
    join = partial(dist.init_process_group, init_method=meeting, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    with mock.patch.object(dist, "init_process_group", join):
        example.main()


def run_command(folder: Path) -> int:
    """Run `mpocompress finetune` on the files of a folder; return its exit code."""
    before = Path.cwd()
    os.chdir(folder)
    sys.argv = ["mpocompress", *COMMAND, "-o", "two.pt"]
    try:
        run_command_line()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        os.chdir(before)
    raise AssertionError("the command line did not exit")


def train(rank: int, *, spare: bool, batches_per_step: int) -> dict[str, object]:
    """Train a model on the same batches as every other process."""
    student, teacher = model(spare)
    if rank == 1:
        with torch.no_grad():  # process 0 gives all their first weights
            for parameter in student.parameters():
                parameter.add_(1.0)
    steps: list[int] = []
    result = tuned(
        student,
        batches(),
        teacher=teacher,
        batches_per_step=batches_per_step,
        progress=lambda progress: steps.append(progress.step),
    )
    return {
        "weights": student.state_dict(),
        "steps": result.steps,
        "samples": result.report.samples,
        "reported steps": steps,
    }


def train_interrupted(rank: int, snapshot: Path) -> dict[str, object]:
    """Train until process 1 is interrupted."""
    student, teacher = model(spare=False)
    result = tuned(
        student,
        lambda: interrupted_batches(rank),
        teacher=teacher,
        held_out=batches(2),
        steps=5000,
        lr=1e-6,
        snapshot=snapshot,
    )
    return {"weights": student.state_dict(), "steps": result.steps, "stopped": result.stopped}


def error_of_odd_batches() -> str:
    """Return the error of a step with fewer batches for one of the processes."""
    student, teacher = model(spare=False)
    try:
        tuned(student, batches(), teacher=teacher, batches_per_step=3)
    except Exception as error:  # noqa: BLE001 - its text is compared
        return str(error)
    return ""


def main(folder: Path) -> None:
    """Run every part and save the results of this process."""
    rank = int(os.environ["RANK"])
    run_example(folder, rank)
    results = {
        "exit code": run_command(folder),
        "plain": train(rank, spare=False, batches_per_step=2),
        "spare": train(rank, spare=True, batches_per_step=4),
        "interrupted": train_interrupted(rank, folder / "interrupted.run"),
        "odd": error_of_odd_batches(),
    }
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

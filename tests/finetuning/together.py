"""What every one of several processes runs: a training together, whose outcome is written to a file."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.finetuning.runs import batches, pair, tuned


class Spare(nn.Module):
    """Has a layer that takes no part in the outputs."""

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


def stopping(rank: int) -> Iterator[Tensor]:
    """Batches for ever; one process is interrupted at one of them."""
    for number in range(10_000):
        if number == 50 and rank == 1:
            signal.raise_signal(signal.SIGINT)
        yield batches(1)[0]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    done: dict[str, object] = {}
    for name, each in (("plain", 2), ("spare", 4)):
        student, teacher = model(spare=name == "spare")
        if rank == 1:
            with torch.no_grad():  # all begin with the weights of the first
                for one in student.parameters():
                    one.add_(1.0)
        told: list[int] = []
        found = tuned(
            student,
            batches(),
            teacher=teacher,
            batches_per_step=each,
            progress=lambda now, told=told: told.append(now.step),
        )
        done[name] = {
            "weights": student.state_dict(),
            "steps": found.steps,
            "samples": found.report.samples,
            "told": told,
        }
    student, teacher = model(spare=False)
    snapshot = folder / "small.run"
    found = tuned(
        student, lambda: stopping(rank), teacher=teacher, held_out=batches(2), steps=5000, lr=1e-6, snapshot=snapshot
    )
    done["stopped"] = {"weights": student.state_dict(), "steps": found.steps, "why": found.stopped}
    try:
        tuned(model(spare=False)[0], batches(), teacher=teacher, batches_per_step=3)
    except Exception as error:  # noqa: BLE001 - its words are looked at
        done["odd"] = str(error)
    torch.save(done, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

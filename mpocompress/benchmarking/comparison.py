"""A dense module and its compressed twin on inputs of one size, in all the ways in which they can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from torch import nn

from mpocompress.benchmarking.contenders import (
    Contender,
    Feed,
    compressed_contender,
    dense_contenders,
    int8_contender,
    race,
)
from mpocompress.jobs import Progress
from mpocompress.nn import Execution
from mpocompress.nn.layer import MPOLayer
from mpocompress.nn.timing import BUDGET_S
from mpocompress.reports.benchmark import Case

EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
STEP = "measuring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How everything is measured.

    Args:
        batches: batch sizes.
        lengths: steps of a sequence.
        repeats: the most samples of a contender.
        device: where everything runs, `cpu` or `cuda`.
        progress: told how far the work is.
        budget_s: seconds that all samples on one size may take.
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    repeats: int
    device: str
    progress: Progress | None
    budget_s: float = BUDGET_S

    def sizes(self, *, has_length: bool) -> tuple[tuple[int, int | None], ...]:
        """Batch size and length of every input; no length where there are no sequences."""
        lengths: tuple[int | None, ...] = self.lengths if has_length else (None,)
        return tuple((batch, length) for batch in self.batches for length in lengths)

    def tell(self, done: int, total: int) -> None:
        """Tell how many sizes are done."""
        if self.progress is not None:
            self.progress(STEP, done, total)


def side_by_side(
    dense: nn.Module,
    compressed: Mapping[Execution, nn.Module],
    feed: Feed,
    *,
    batch: int,
    length: int | None,
    conditions: Conditions,
    more: tuple[Contender, ...] = (),
    gradients: bool = False,
) -> Case:
    """Time all contenders on inputs of one size.

    Args:
        dense: the dense module.
        compressed: its twin, by the way it runs.
        feed: calls one of them with the inputs.
        batch: inputs in the batch, for the report.
        length: steps of a sequence, for the report.
        conditions: how it is measured.
        more: further contenders, put behind the dense ones.
        gradients: whether `feed` asks for gradients, which weights of 8 bits do not have.

    Returns:
        The figures; bytes are those that a module holds after it ran on this size alone.
    """
    for module in compressed.values():
        for one in module.modules():
            if isinstance(one, MPOLayer):
                one.clear_cache()
    contenders = (
        *dense_contenders(dense, feed),
        *more,
        *(() if gradients else (int8_contender(dense, feed),)),
        *(compressed_contender(module, feed, mode) for mode, module in compressed.items()),
    )
    return Case(
        batch=batch,
        length=length,
        contenders=race(
            contenders,
            repeats=conditions.repeats,
            device=conditions.device,
            gradients=gradients,
            budget_s=conditions.budget_s,
        ),
    )

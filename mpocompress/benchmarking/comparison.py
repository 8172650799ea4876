"""Comparison of a dense module with its compressed twin on inputs of one size, in all ways in which they can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from torch import nn

from mpocompress.benchmarking.contenders import (
    Contender,
    RunModule,
    compressed_contender,
    dense_contenders,
    int8_contender,
    time_contenders,
)
from mpocompress.nn import Execution
from mpocompress.nn.layer import MPOLayer
from mpocompress.nn.timing import BUDGET_S
from mpocompress.parallel import Progress
from mpocompress.reports.benchmark import Case

EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
STEP = "measuring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Conditions of all measurements.

    Args:
        batches: batch sizes.
        lengths: lengths of the sequences, in steps.
        repeats: largest number of samples of a contender.
        device: device of all contenders, `cpu` or `cuda`.
        progress: called before every size and at the end.
        budget_s: seconds for all samples of one size.
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    repeats: int
    device: str
    progress: Progress | None
    budget_s: float = BUDGET_S

    def sizes(self, *, has_length: bool) -> tuple[tuple[int, int | None], ...]:
        """Return (batch size, length) of every input; the length is None for layers without sequences."""
        lengths: tuple[int | None, ...] = self.lengths if has_length else (None,)
        return tuple((batch, length) for batch in self.batches for length in lengths)

    def report_progress(self, done: int, total: int) -> None:
        """Report the number of sizes that are done."""
        if self.progress is not None:
            self.progress(STEP, done, total)


def measure_case(
    dense: nn.Module,
    compressed: Mapping[Execution, nn.Module],
    run: RunModule,
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
        compressed: execution mode -> its compressed twin.
        run: calls a module with the inputs.
        batch: batch size of the inputs, for the report.
        length: length of the sequences, for the report.
        conditions: conditions of the measurement.
        more: additional contenders, placed after the dense ones.
        gradients: whether `run` needs gradients, which int8 weights do not support.

    Returns:
        The measurements. The caches are cleared first, so that bytes are those for this size alone.
    """
    for module in compressed.values():
        for layer in module.modules():
            if isinstance(layer, MPOLayer):
                layer.clear_cache()
    contenders = (
        *dense_contenders(dense, run),
        *more,
        *(() if gradients else (int8_contender(dense, run),)),
        *(compressed_contender(module, run, mode) for mode, module in compressed.items()),
    )
    return Case(
        batch=batch,
        length=length,
        contenders=time_contenders(
            contenders,
            repeats=conditions.repeats,
            device=conditions.device,
            gradients=gradients,
            budget_s=conditions.budget_s,
        ),
    )

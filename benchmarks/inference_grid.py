"""`auto` over a grid of sizes, bonds and site shapes: how many times faster than the best dense contender."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.drawn import linear_twins, lstm_twins
from benchmarks.inference_rows import LENGTH
from mpocompress.benchmarking.comparison import Conditions
from mpocompress.benchmarking.contenders import (
    Contender,
    compressed_contender,
    dense_contenders,
    largest_difference,
    time_contenders,
)
from mpocompress.benchmarking.layers import random_inputs
from mpocompress.benchmarking.stored_layers import LayerPair
from mpocompress.reports.benchmark import Case, ContenderResult

SIZES, BATCHES, BONDS = (64, 128, 256, 512, 1024, 2048), (1, 4, 16, 64), (4, 16, 64)
QUICK_SIZES, QUICK_BATCHES, QUICK_BONDS = (64,), (1, 2), (4,)
SHAPES = ("low rank", "balanced")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One kind, size and batch of layer, with every bond and site shape in one run.

    Args:
        kind: `LSTM` or `Linear`.
        size: Hidden units, or rows and columns.
        case: The measurements; the name of a compressed contender is its bond and site shape.
    """

    kind: str
    size: int
    case: Case

    @property
    def ratios(self) -> dict[str, float]:
        """Bond and site shape -> how many times faster than the best dense contender."""
        timed = [contender for contender in self.case.contenders if contender.kind == "compressed"]
        return {contender.name: contender.times_faster or 0.0 for contender in timed}

    @property
    def label(self) -> str:
        """Kind and sizes as text."""
        return f"{self.kind} {self.size}, batch {self.case.batch}"


def columns(bonds: Sequence[int]) -> list[str]:
    """The name of every bond and site shape."""
    return [f"{shape} {bond}" for shape in SHAPES for bond in bonds]


def run_grid(quick: bool, largest: int, conditions: Conditions) -> Iterator[Cell]:
    """Measure the grid; yield its cells, small sizes first.

    Args:
        quick: Measure only a few small cells.
        largest: Largest size.
        conditions: Conditions of the measurement.
    """
    sizes, batches, bonds = (QUICK_SIZES, QUICK_BATCHES, QUICK_BONDS) if quick else (SIZES, BATCHES, BONDS)
    for kind in ("LSTM", "Linear"):
        for size in (size for size in sizes if size <= largest):
            for batch in batches:
                length = None if kind == "Linear" else 3 if quick else LENGTH
                yield Cell(kind=kind, size=size, case=_case(kind, size, batch, length, bonds, conditions))


def worst(cells: Sequence[Cell]) -> str:
    """The cell with the smallest gain, as text."""
    ratio, name, cell = min(
        ((ratio, name, cell) for cell in cells for name, ratio in cell.ratios.items()), key=lambda entry: entry[0]
    )
    return f"worst: {ratio:.2f} times as fast as the best dense contender ({cell.label}, {name})"


def _case(kind: str, size: int, batch: int, length: int | None, bonds: Sequence[int], conditions: Conditions) -> Case:
    """Every bond and site shape beside one dense layer, whose speed does not depend on its values."""
    builders = {f"{shape} {bond}": _twins(kind, size, shape, bond) for shape in SHAPES for bond in bonds}
    dense = next(iter(builders.values()))().dense
    feed, more = random_inputs(dense, batch, length, conditions.device)
    contenders: list[Contender] = [*dense_contenders(dense, feed), *more]
    differences: dict[str, float | None] = {}
    for name, build in builders.items():
        pair = build()
        small = pair.compressed("auto")
        with torch.inference_mode():
            differences[name] = largest_difference(feed(small), feed(pair.dense))
        contenders.append(dataclasses.replace(compressed_contender(small, feed, "auto"), name=name))
    timed = time_contenders(
        contenders, repeats=conditions.repeats, device=conditions.device, budget_s=conditions.budget_s
    )
    return Case(batch=batch, length=length, contenders=tuple(_compared(contender, differences) for contender in timed))


def _twins(kind: str, size: int, shape: str, bond: int) -> Callable[[], LayerPair]:
    if kind == "LSTM":
        return partial(lstm_twins, size, shape, bond, joint=False)
    return partial(linear_twins, size, size, shape, bond)


def _compared(timed: ContenderResult, differences: dict[str, float | None]) -> ContenderResult:
    """A contender with its difference from its own dense twin."""
    own = differences.get(timed.name, timed.largest_difference)
    return dataclasses.replace(timed, largest_difference=own)

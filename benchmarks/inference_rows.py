"""The rows of `benchmarks/inference.py`: layers, sizes and site shapes, in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.drawn import LSTM_TWINS, linear_twins, lstm_twins
from mpocompress.benchmarking.comparison import EXECUTIONS, Conditions, measure_case
from mpocompress.benchmarking.contenders import RunModule
from mpocompress.benchmarking.layers import random_inputs
from mpocompress.benchmarking.stored_layers import LayerPair
from mpocompress.reports.benchmark import Case

LENGTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layer with one size of input.

    Args:
        layer: Description of the layer.
        cores: Form and site shape.
        twins: Builds the dense and the compressed layer.
        batch: Inputs in the batch.
        length: Steps of the sequence, or None.
        training: Whether forward and backward are measured instead of forward alone.
    """

    layer: str
    cores: str
    load_pair: Callable[[], LayerPair]
    batch: int
    length: int | None = None
    training: bool = False

    def run(self, conditions: Conditions) -> Case:
        """Measure this row."""
        pair = self.load_pair()
        compressed = {mode: pair.compressed(mode) for mode in EXECUTIONS}
        feed, more = random_inputs(pair.dense, self.batch, self.length, conditions.device)
        if self.training:
            feed, more = trained(self.batch, self.length or 1, pair.dense), ()
            for module in (pair.dense, *compressed.values()):
                module.train().requires_grad_(requires_grad=True)
        return measure_case(
            pair.dense,
            compressed,
            feed,
            batch=self.batch,
            length=self.length,
            conditions=conditions,
            more=more,
            gradients=self.training,
        )


def trained(batch: int, length: int, lstm: nn.Module) -> RunModule:
    """A call of forward and backward of an LSTM, to its weights and its inputs.

    Returns:
        A function of the module that returns the outputs and the gradient of the inputs.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(length, batch, int(lstm.input_size), generator=generator).requires_grad_()  # type: ignore[arg-type]

    def step(module: nn.Module) -> tuple[Tensor, Tensor | None]:
        module.zero_grad()
        inputs.grad = None
        outputs: Tensor = module(inputs)[0]
        outputs.square().mean().backward()  # type: ignore[no-untyped-call]
        return outputs, inputs.grad

    return step


def lstm_rows(
    hidden: int, batch: int, shapes: Sequence[str], bond: int, *, length: int = LENGTH, training: bool = False
) -> list[Row]:
    """An LSTM in several site shapes, with separate and joint weights."""
    return [
        Row(
            layer=f"LSTM {hidden}, batch {batch}, length {length}",
            cores=f"{shape}, {form}",
            load_pair=partial(make, hidden, shape, bond),
            batch=batch,
            length=length,
            training=training,
        )
        for shape in shapes
        for form, make in LSTM_TWINS.items()
    ]


def cell_rows(hidden: int, batch: int, bond: int) -> list[Row]:
    """An LSTM cell with separate and joint weights."""
    return [
        Row(
            layer=f"LSTM cell {hidden}, batch {batch}",
            cores=f"low rank, {form}",
            load_pair=partial(lstm_twins, hidden, "low rank", bond, joint=form == "joint", cell=True),
            batch=batch,
        )
        for form in LSTM_TWINS
    ]


def linear_row(rows: int, cols: int, batch: int, shape: str, bond: int) -> Row:
    """A Linear layer."""
    return Row(
        layer=f"Linear {rows} x {cols}, batch {batch}",
        cores=shape,
        load_pair=partial(linear_twins, rows, cols, shape, bond),
        batch=batch,
    )


def groups(bond: int) -> Mapping[str, Sequence[Row]]:
    """All rows by the name of their group."""
    return {
        "lstm": [
            *lstm_rows(1024, 1, ("low rank", "split 8", "balanced"), bond),
            *lstm_rows(512, 1, ("low rank", "balanced"), bond),
            *lstm_rows(256, 1, ("low rank",), bond),
            *lstm_rows(2048, 1, ("low rank",), bond),
            *lstm_rows(1024, 32, ("low rank",), bond),
            *lstm_rows(512, 32, ("low rank", "balanced"), bond),
        ],
        "step": [
            row
            for hidden in (512, 1024)
            for row in (*lstm_rows(hidden, 1, ("low rank",), bond, length=1), *cell_rows(hidden, 1, bond))
        ],
        "linear": [
            linear_row(*sides, batch, shape, bond)
            for sides in ((1024, 1024), (4096, 1024), (4096, 4096))
            for batch, shape in ((1, "balanced"), (1, "low rank"), (512, "low rank"), (512, "balanced"))
        ],
        "training": lstm_rows(650, 20, ("low rank",), bond, length=35, training=True),
    }


def quick_groups(bond: int) -> Mapping[str, Sequence[Row]]:
    """One small row of every kind."""
    return {
        "lstm": lstm_rows(64, 2, ("low rank", "split 8", "balanced"), bond, length=3),
        "step": [*lstm_rows(64, 1, ("low rank",), bond, length=1), *cell_rows(64, 1, bond)],
        "linear": [linear_row(128, 64, 2, "balanced", bond)],
        "training": lstm_rows(64, 2, ("low rank",), bond, length=3, training=True),
    }

"""Benchmark of the user's whole model, dense against compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mpocompress.benchmarking.comparison import EXECUTIONS, Conditions, measure_case
from mpocompress.benchmarking.dense_twin import dense_state
from mpocompress.benchmarking.example_inputs import (
    InputsMaker,
    check_inputs,
    given_inputs,
    guessed_inputs,
    make_inputs,
)
from mpocompress.benchmarking.options import InputsFunction
from mpocompress.benchmarking.stored_layers import StoredLayer
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.modules.load import load
from mpocompress.nn import Execution
from mpocompress.reports.benchmark import BenchResult, Case
from mpocompress.user.batches import call_model
from mpocompress.user.model import model_factory


def bench_model(
    stored: Sequence[StoredLayer],
    model: str | nn.Module,
    inputs: str | InputsFunction | None,
    checkpoint: Checkpoint,
    conditions: Conditions,
) -> tuple[tuple[BenchResult, ...], tuple[str, ...]]:
    """Load a compressed file into the user's model, once for every execution mode, and measure it.

    Args:
        stored: the compressed layers of the file.
        model: a module, or `file.py:name` or `package.module:name` of a module or of a function or class that builds
            it.
        inputs: a function of a batch size and a length, or its name as for a model; None to guess.
        checkpoint: the open file.
        conditions: conditions of the measurement.

    Returns:
        The measurements, and notes for the reader.

    Raises:
        ModelError: the model cannot be built, or does not match the file.
        InputsError: inputs cannot be made or guessed, or the model does not accept them.
    """
    build, given = model_factory(model), None if inputs is None else given_inputs(inputs)
    compressed: Mapping[Execution, nn.Module] = {
        mode: load(checkpoint, build(), execution=mode).eval().to(conditions.device) for mode in EXECUTIONS
    }
    dense = build()
    dense.load_state_dict(dense_state(compressed["auto"], dense))
    dense.eval().to(conditions.device)
    maker = given or guessed_inputs(dense)
    sizes = conditions.sizes(has_length=maker.has_length)
    cases = []
    for done, (batch, length) in enumerate(sizes):
        conditions.report_progress(done, len(sizes))
        cases.append(_case(dense, compressed, maker, batch, length, conditions))
    conditions.report_progress(len(sizes), len(sizes))
    benched = BenchResult(
        kind="model",
        layers=tuple(layer.path for layer in stored),
        matrices=(),
        dense_parameters=sum(layer.dense_parameters for layer in stored),
        parameters=sum(layer.parameters for layer in stored),
        cases=tuple(cases),
    )
    return (benched,), (f"The model was called with {maker.description}.",)


def _case(
    dense: nn.Module,
    compressed: Mapping[Execution, nn.Module],
    maker: InputsMaker,
    batch: int,
    length: int | None,
    conditions: Conditions,
) -> Case:
    """Measure the model on inputs of one size."""
    inputs = make_inputs(maker, batch, length or 1, conditions.device)
    check_inputs(dense, inputs, maker)
    return measure_case(
        dense, compressed, lambda module: call_model(module, inputs), batch=batch, length=length, conditions=conditions
    )

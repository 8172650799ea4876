"""The whole model of the user, dense against compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mpocompress.benchmarking.comparison import EXECUTIONS, Conditions, side_by_side
from mpocompress.benchmarking.dense_twin import dense_state
from mpocompress.benchmarking.example_inputs import (
    InputsMaker,
    checked_inputs,
    first_call,
    given_inputs,
    guessed_inputs,
)
from mpocompress.benchmarking.options import InputsFunction
from mpocompress.benchmarking.stored_layers import StoredLayer
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.modules.load import load
from mpocompress.nn import Execution
from mpocompress.reports.benchmark import Benched, Case
from mpocompress.user.batches import call_model
from mpocompress.user.model import model_factory


def bench_model(
    stored: Sequence[StoredLayer],
    model: str | nn.Module,
    inputs: str | InputsFunction | None,
    checkpoint: Checkpoint,
    conditions: Conditions,
) -> tuple[tuple[Benched, ...], tuple[str, ...]]:
    """Load a compressed file into the user's model, once for every way in which it can run, and measure it.

    Args:
        stored: the compressed layers of the file.
        model: a module, or `file.py:name` or `package.module:name` of one or of what builds it.
        inputs: a function of a batch size and a length, or where it is; None to guess.
        checkpoint: the open file.
        conditions: how it is measured.

    Returns:
        The figures, and what a reader should know.

    Raises:
        ModelError: the model cannot be built, or the file is not of it.
        InputsError: inputs cannot be made or guessed, or the model does not take them.
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
        conditions.tell(done, len(sizes))
        cases.append(_case(dense, compressed, maker, batch, length, conditions))
    conditions.tell(len(sizes), len(sizes))
    benched = Benched(
        kind="model",
        layers=tuple(layer.path for layer in stored),
        matrices=(),
        dense_parameters=sum(layer.dense_parameters for layer in stored),
        parameters=sum(layer.parameters for layer in stored),
        cases=tuple(cases),
    )
    return (benched,), (f"The model was called with {maker.said}.",)


def _case(
    dense: nn.Module,
    compressed: Mapping[Execution, nn.Module],
    maker: InputsMaker,
    batch: int,
    length: int | None,
    conditions: Conditions,
) -> Case:
    """The model on one size of input."""
    made = checked_inputs(maker, batch, length or 1, conditions.device)
    first_call(dense, made, maker)
    return side_by_side(
        dense, compressed, lambda one: call_model(one, made), batch=batch, length=length, conditions=conditions
    )

"""Benchmark of each compressed layer of a file; layers of the same kind and shape are measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mpocompress.benchmarking.comparison import EXECUTIONS, Conditions, measure_case
from mpocompress.benchmarking.contenders import Contender, RunModule, one_step_contenders
from mpocompress.benchmarking.stored_layers import StoredLayer, load_pair
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import SelectionError
from mpocompress.layers.names import matches
from mpocompress.nn import Execution
from mpocompress.reports.benchmark import BenchKind, BenchMatrix, BenchResult, Case
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import listed

MOST_LAYERS = 12
"""Largest number of different layers that are measured; a note names the others."""
_SEED = 0


def bench_layers(
    stored: Sequence[StoredLayer],
    globs: Sequence[str],
    checkpoint: Checkpoint,
    report: Report,
    conditions: Conditions,
) -> tuple[tuple[BenchResult, ...], tuple[str, ...]]:
    """Measure every layer that has a compressed matrix.

    Args:
        stored: the layers.
        globs: patterns of layers to measure; empty for all.
        checkpoint: the open file.
        report: the report in it.
        conditions: conditions of the measurement.

    Returns:
        The measurements, and notes for the reader.

    Raises:
        SelectionError: a pattern matches no compressed layer.
        FormatError: a layer cannot be built from its tensors.
    """
    groups: dict[object, list[StoredLayer]] = {}
    for layer in _selected(stored, globs, checkpoint.path.name):
        groups.setdefault(layer.signature, []).append(layer)
    largest = sorted(groups, key=lambda key: -len(groups[key]) * groups[key][0].dense_parameters)[:MOST_LAYERS]
    measured = [group for key, group in groups.items() if key in largest]
    total = sum(len(_sizes(group[0], conditions)) for group in measured)
    done = 0
    benched = []
    for group in measured:
        cases = []
        dense, compressed = _modules(group[0], checkpoint, report, conditions.device)
        for batch, length in _sizes(group[0], conditions):
            conditions.report_progress(done, total)
            cases.append(_case(dense, compressed, batch, length, conditions))
            done += 1
        benched.append(_benched(group, tuple(cases)))
    conditions.report_progress(done, total)
    return tuple(benched), tuple(_notes(groups, measured))


def _selected(stored: Sequence[StoredLayer], globs: Sequence[str], where: str) -> list[StoredLayer]:
    """Return the layers that a pattern matches, by the name of the layer or of a tensor."""
    names = {layer.path: (layer.path, *layer.tensors) for layer in stored}
    for glob in globs:
        if not any(matches(glob, name) for own in names.values() for name in own):
            raise SelectionError(
                where=f"{where}, layer pattern {glob!r}",
                found="matches no compressed layer",
                why="a pattern has to select at least one layer",
                action=f"Use the name of a compressed layer: {listed(list(names))}.",
            )
    return [
        layer
        for layer in stored
        if not globs or any(matches(glob, name) for glob in globs for name in (layer.path, *layer.tensors))
    ]


def _sizes(layer: StoredLayer, conditions: Conditions) -> tuple[tuple[int, int | None], ...]:
    return conditions.sizes(has_length=layer.kind == "lstm")


def _modules(
    layer: StoredLayer, checkpoint: Checkpoint, report: Report, device: str
) -> tuple[nn.Module, Mapping[Execution, nn.Module]]:
    """Load a layer dense, and compressed in every execution mode."""
    pair = load_pair(layer, checkpoint, report)
    return pair.dense.to(device), {mode: pair.compressed(mode).to(device) for mode in EXECUTIONS}


def _case(
    dense: nn.Module,
    compressed: Mapping[Execution, nn.Module],
    batch: int,
    length: int | None,
    conditions: Conditions,
) -> Case:
    """Measure one layer on inputs of one size."""
    run, more = random_inputs(dense, batch, length, conditions.device)
    return measure_case(dense, compressed, run, batch=batch, length=length, conditions=conditions, more=more)


def random_inputs(
    layer: nn.Module, batch: int, length: int | None, device: str
) -> tuple[RunModule, tuple[Contender, ...]]:
    """Make random inputs, and states, for a layer.

    Args:
        layer: an LSTM that is not batch first, an LSTM cell, or a Linear layer.
        batch: batch size.
        length: length of the sequences, for an LSTM only.
        device: device of the inputs.

    Returns:
        A function that calls a layer with them, and the additional contenders of torch: cells for a single step.

    Example:
        >>> run, _ = random_inputs(nn.Linear(2, 3), 4, None, "cpu")
        >>> run(nn.Linear(2, 3)).shape
        torch.Size([4, 3])
    """
    generator = torch.Generator().manual_seed(_SEED)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    if isinstance(layer, nn.LSTM):
        levels = layer.num_layers * (2 if layer.bidirectional else 1)
        inputs = noise(length or 1, batch, layer.input_size)
        hidden = noise(levels, batch, layer.proj_size or layer.hidden_size)
        cell = noise(levels, batch, layer.hidden_size)
        more = one_step_contenders(layer, inputs, hidden, cell) if length == 1 else ()
        return (lambda module: module(inputs, (hidden, cell))), more
    if isinstance(layer, nn.LSTMCell):
        inputs, hidden, cell = noise(batch, layer.input_size), *(noise(batch, layer.hidden_size) for _ in range(2))
        return (lambda module: module(inputs, (hidden, cell))), ()
    inputs = noise(batch, cast("nn.Linear", layer).in_features)
    return (lambda module: module(inputs)), ()


def _benched(group: Sequence[StoredLayer], cases: tuple[Case, ...]) -> BenchResult:
    first = group[0]
    return BenchResult(
        kind=cast("BenchKind", first.kind),
        layers=tuple(layer.path for layer in group),
        matrices=tuple(_matrix(name, matrix) for name, matrix in first.matrices.items()),
        dense_parameters=first.dense_parameters,
        parameters=first.parameters,
        cases=cases,
    )


def _matrix(name: str, matrix: MatrixReport) -> BenchMatrix:
    return BenchMatrix(
        name=name,
        shape=matrix.shape,
        row_dims=matrix.row_dims,
        col_dims=matrix.col_dims,
        anti_aligned=matrix.anti_aligned,
        bonds=matrix.bonds,
    )


def _notes(groups: Mapping[object, Sequence[StoredLayer]], measured: Sequence[Sequence[StoredLayer]]) -> list[str]:
    """Return notes for the reader on which layers were measured, and in which dtype."""
    notes = []
    others = [group[0].path for group in groups.values() if group not in measured]
    if others:
        notes.append(
            f"Of {len(groups)} different layers, the {len(measured)} with the most parameters were measured, but not "
            f"{listed(others)}; select a layer by its name to measure it."
        )
    dtypes = {matrix.dtype for group in measured for matrix in group[0].matrices.values()} - {"float32"}
    if dtypes:
        notes.append(f"Layers are measured in float32; their cores are stored as {', '.join(sorted(dtypes))}.")
    return notes

"""Every compressed layer of a file alone, dense against compressed; layers that run alike are measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mpocompress.benchmarking.comparison import EXECUTIONS, Conditions, side_by_side
from mpocompress.benchmarking.contenders import Contender, Feed, one_step_contenders
from mpocompress.benchmarking.stored_layers import StoredLayer, twins
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import SelectionError
from mpocompress.layers.names import matches
from mpocompress.nn import Execution
from mpocompress.reports.benchmark import Benched, BenchedKind, BenchedMatrix, Case
from mpocompress.reports.compression import MatrixReport, Report
from mpocompress.text import listed

MOST_LAYERS = 12
"""Layers that are measured, of those that run differently; the others are named."""
_SEED = 0


def bench_layers(
    stored: Sequence[StoredLayer],
    globs: Sequence[str],
    checkpoint: Checkpoint,
    report: Report,
    conditions: Conditions,
) -> tuple[tuple[Benched, ...], tuple[str, ...]]:
    """Measure every layer that has a compressed matrix.

    Args:
        stored: the layers.
        globs: which of them; empty for all.
        checkpoint: the open file.
        report: the report in it.
        conditions: how it is measured.

    Returns:
        The figures, and what a reader should know.

    Raises:
        SelectionError: a glob that matches no compressed layer.
        FormatError: a layer that cannot be put together.
    """
    groups: dict[object, list[StoredLayer]] = {}
    for layer in _chosen(stored, globs, checkpoint.path.name):
        groups.setdefault(layer.likeness, []).append(layer)
    largest = sorted(groups, key=lambda key: -len(groups[key]) * groups[key][0].dense_parameters)[:MOST_LAYERS]
    measured = [alike for key, alike in groups.items() if key in largest]
    total = sum(len(_sizes(alike[0], conditions)) for alike in measured)
    done = 0
    benched = []
    for alike in measured:
        cases = []
        dense, compressed = _modules(alike[0], checkpoint, report, conditions.device)
        for batch, length in _sizes(alike[0], conditions):
            conditions.tell(done, total)
            cases.append(_case(dense, compressed, batch, length, conditions))
            done += 1
        benched.append(_benched(alike, tuple(cases)))
    conditions.tell(done, total)
    return tuple(benched), tuple(_notes(groups, measured))


def _chosen(stored: Sequence[StoredLayer], globs: Sequence[str], where: str) -> list[StoredLayer]:
    """The layers that a glob means, by the name of the layer or of a tensor."""
    names = {layer.path: (layer.path, *layer.tensors) for layer in stored}
    for glob in globs:
        if not any(matches(glob, name) for own in names.values() for name in own):
            raise SelectionError(
                where=f"{where}, layer pattern {glob!r}",
                found="matches no compressed layer",
                why="a pattern that selects nothing is a mistake",
                action=f"Compressed are {listed(list(names))}.",
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
    """A layer dense, and compressed in every way in which it can run."""
    pair = twins(layer, checkpoint, report)
    return pair.dense.to(device), {mode: pair.compressed(mode).to(device) for mode in EXECUTIONS}


def _case(
    dense: nn.Module,
    compressed: Mapping[Execution, nn.Module],
    batch: int,
    length: int | None,
    conditions: Conditions,
) -> Case:
    """One layer on one size of input."""
    feed, more = fed_layer(dense, batch, length, conditions.device)
    return side_by_side(dense, compressed, feed, batch=batch, length=length, conditions=conditions, more=more)


def fed_layer(layer: nn.Module, batch: int, length: int | None, device: str) -> tuple[Feed, tuple[Contender, ...]]:
    """Random inputs for a layer, and states where it has them.

    Args:
        layer: an LSTM that is not batch first, an LSTM cell, or a Linear layer.
        batch: inputs in the batch.
        length: steps of the sequence; for an LSTM only.
        device: where the inputs go.

    Returns:
        What calls a layer with them, and what else torch has for them: cells for a single step.

    Example:
        >>> feed, _ = fed_layer(nn.Linear(2, 3), 4, None, "cpu")
        >>> feed(nn.Linear(2, 3)).shape
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
        return (lambda one: one(inputs, (hidden, cell))), more
    if isinstance(layer, nn.LSTMCell):
        inputs, hidden, cell = noise(batch, layer.input_size), *(noise(batch, layer.hidden_size) for _ in range(2))
        return (lambda one: one(inputs, (hidden, cell))), ()
    inputs = noise(batch, cast("nn.Linear", layer).in_features)
    return (lambda one: one(inputs)), ()


def _benched(alike: Sequence[StoredLayer], cases: tuple[Case, ...]) -> Benched:
    first = alike[0]
    return Benched(
        kind=cast("BenchedKind", first.kind),
        layers=tuple(layer.path for layer in alike),
        matrices=tuple(_matrix(name, one) for name, one in first.matrices.items()),
        dense_parameters=first.dense_parameters,
        parameters=first.parameters,
        cases=cases,
    )


def _matrix(name: str, matrix: MatrixReport) -> BenchedMatrix:
    return BenchedMatrix(
        name=name,
        shape=matrix.shape,
        row_dims=matrix.row_dims,
        col_dims=matrix.col_dims,
        anti_aligned=matrix.anti_aligned,
        bonds=matrix.bonds,
    )


def _notes(groups: Mapping[object, Sequence[StoredLayer]], measured: Sequence[Sequence[StoredLayer]]) -> list[str]:
    """What a reader should know of what was measured."""
    notes = []
    left = [alike[0].path for alike in groups.values() if alike not in measured]
    if left:
        notes.append(
            f"Of {len(groups)} different layers the {len(measured)} with the most parameters were measured, not "
            f"{listed(left)}; a layer that is named is measured."
        )
    dtypes = {one.dtype for alike in measured for one in alike[0].matrices.values()} - {"float32"}
    if dtypes:
        notes.append(f"Layers alone run in float32; their cores are stored as {', '.join(sorted(dtypes))}.")
    return notes

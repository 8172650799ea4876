"""The layers of a compressed file, each by itself: which there are, and one of them beside its dense twin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.checkpoint import Checkpoint, TensorInfo
from mpocompress.errors import FormatError
from mpocompress.layers import LSTM_GATES
from mpocompress.mpo import MPO
from mpocompress.nn import MPOLSTM, MPOLinear, MPOLSTMCell, MPOWeight
from mpocompress.report import MatrixReport, Report
from mpocompress.rewriter import stored_mpo

_LSTM_PARTS = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(?P<level>\d+)(?P<reverse>_reverse)?")
_CELL_PARTS = re.compile(r"(?:weight|bias)_(?:ih|hh)")
_LINEAR_PARTS = re.compile(r"bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A layer with at least one compressed matrix, as names and shapes.

    Args:
        path: of the module; empty for the model itself.
        kind: `lstm` (all its levels and directions), `lstm_cell`, `linear` or `conv1d`.
        matrices: its compressed matrices, by their names in the layer.
        shapes: shape of every tensor of the dense layer, by its name in the layer.
        kept: tensors that are no cores: name in the layer -> name in the file.
    """

    path: str
    kind: str
    matrices: Mapping[str, MatrixReport]
    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, str]

    @property
    def likeness(self) -> object:
        """Equal for layers that run alike: same kind, shapes, sites and bonds."""
        cores = (
            (name, one.row_dims, one.col_dims, one.anti_aligned, one.bonds) for name, one in self.matrices.items()
        )
        return (self.kind, tuple(cores), tuple(self.shapes.items()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Twins:
    """One layer twice, in float32: dense, and what it takes to make it with cores. Both compute the same.

    Args:
        dense: torch's own layer; its weights are the cores multiplied out.
        mpos: the decompositions, by their names in the layer.
    """

    dense: nn.Module
    mpos: Mapping[str, MPO]

    def compressed(self, execution: str) -> nn.Module:
        """A new layer that holds the cores.

        Args:
            execution: `auto`, `factorised` or `materialised`.

        Returns:
            The layer; its cores share memory with those of other calls.
        """
        weights = {name: MPOWeight(mpo, requires_grad=False) for name, mpo in self.mpos.items()}
        if isinstance(self.dense, nn.LSTM):
            return MPOLSTM.replacing(self.dense, weights, execution=execution)
        if isinstance(self.dense, nn.LSTMCell):
            return MPOLSTMCell.replacing(self.dense, weights, execution=execution)
        (weight,) = weights.values()
        return MPOLinear.replacing(self.dense, weight, execution=execution)


def stored_layers(report: Report, names: Mapping[str, TensorInfo]) -> tuple[StoredLayer, ...]:
    """The layers of a compressed file that have a compressed matrix.

    Args:
        report: the report in the file.
        names: the tensors of the file.

    Returns:
        The layers, in file order; the levels and directions of one LSTM together, every other matrix by itself.
    """
    groups: dict[tuple[str, str, str], list[MatrixReport]] = {}
    for matrix in report.compressed:
        recurrent = matrix.kind in ("lstm", "lstm_cell")
        groups.setdefault((matrix.layer, matrix.kind, "" if recurrent else matrix.name), []).append(matrix)
    by_member = {
        member: (columns, matrix)
        for matrix in report.matrices
        for member, columns in zip(matrix.members, matrix.member_columns, strict=True)
    }

    def shape(name: str) -> tuple[int, ...]:
        """Of a tensor of the dense model."""
        if name in by_member:
            columns, matrix = by_member[name]
            return matrix.shape[0], columns
        return names[name].shape

    layers = []
    for (path, kind, _), matrices in groups.items():
        own = {one.name.removeprefix(f"{path}."): one for one in matrices}
        cut = {member for one in matrices for member in one.members}
        there = _parts(kind, path, (*names, *by_member, *report.aliases))
        found = {part: report.aliases.get(name, name) for part, name in there.items()}
        if kind not in ("lstm", "lstm_cell"):
            (matrix,) = matrices
            found = {"weight": matrix.members[0]} | {
                part: name for part, name in found.items() if shape(name) == (matrix.shape[0],)
            }
            own = {"weight": matrix}
        layers.append(
            StoredLayer(
                path=path,
                kind=kind,
                matrices=own,
                shapes=dict(sorted((part, shape(name)) for part, name in found.items())),
                kept={part: name for part, name in found.items() if name not in cut},
            )
        )
    return tuple(layers)


def twins(layer: StoredLayer, checkpoint: Checkpoint, report: Report) -> Twins:
    """Read one layer and put it together, dense and compressed.

    Args:
        layer: the layer.
        checkpoint: the open file.
        report: the report in it.

    Returns:
        Both layers, in float32.

    Raises:
        FormatError: cores that contradict the report, or tensors that make no layer of this kind.
    """
    where, read = checkpoint.path.name, checkpoint.tensor
    mpos = {
        name: stored_mpo(one, checkpoint.tensors, read, where=where).to(torch.float32)
        for name, one in layer.matrices.items()
    }
    state = {part: _dense(name, report, checkpoint) for part, name in layer.kept.items()}
    parts = {name: part for part, name in _parts(layer.kind, layer.path, report_members(layer)).items()}
    for name, one in layer.matrices.items():
        columns = torch.split(mpos[name].to_matrix(), list(one.member_columns), dim=1)
        state |= {parts.get(member, name): part for member, part in zip(one.members, columns, strict=True)}
    try:
        dense = _LAYERS[layer.kind](layer)
        dense.load_state_dict({part: tensor.contiguous() for part, tensor in state.items()}, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise FormatError(
            where=f"{where}, {layer.path}",
            found=f"tensors {', '.join(f'{part} {shape}' for part, shape in layer.shapes.items())}",
            why=f"they do not make a layer of kind {layer.kind}",
            action="The file is damaged or was edited: compress the original checkpoint again.",
        ) from error
    return Twins(dense=dense.eval().requires_grad_(requires_grad=False), mpos=mpos)


def report_members(layer: StoredLayer) -> tuple[str, ...]:
    """Names, in the original, of the tensors that the cores of a layer stand for.

    Args:
        layer: the layer.

    Returns:
        The names.
    """
    return tuple(member for one in layer.matrices.values() for member in one.members)


def _parts(kind: str, path: str, names: tuple[str, ...]) -> dict[str, str]:
    """The tensors of a layer: name in the layer -> name in the file."""
    pattern = {"lstm": _LSTM_PARTS, "lstm_cell": _CELL_PARTS}.get(kind, _LINEAR_PARTS)
    start = f"{path}." if path else ""
    inside = ((name.removeprefix(start), name) for name in names if name.startswith(start))
    return {part: name for part, name in inside if pattern.fullmatch(part)}


def _dense(name: str, report: Report, checkpoint: Checkpoint) -> Tensor:
    """A tensor of the dense model in float32: one of the file, or what a tie to a compressed weight means."""
    if name in checkpoint.tensors:
        return checkpoint.tensor(name).to(torch.float32)
    matrix = next(one for one in report.compressed if name in one.members)
    mpo = stored_mpo(matrix, checkpoint.tensors, checkpoint.tensor, where=checkpoint.path.name).to(torch.float32)
    return torch.split(mpo.to_matrix(), list(matrix.member_columns), dim=1)[matrix.members.index(name)]


def _lstm(layer: StoredLayer) -> nn.LSTM:
    found = [match for part in layer.shapes if (match := _LSTM_PARTS.fullmatch(part)) is not None]
    projection = layer.shapes.get("weight_hr_l0")
    return nn.LSTM(
        layer.shapes["weight_ih_l0"][1],
        layer.shapes["weight_hh_l0"][0] // LSTM_GATES,
        num_layers=1 + max(int(match["level"]) for match in found),
        bias="bias_ih_l0" in layer.shapes,
        bidirectional=any(match["reverse"] for match in found),
        proj_size=projection[0] if projection is not None else 0,
        device="meta",
    )


def _cell(layer: StoredLayer) -> nn.LSTMCell:
    rows, inputs = layer.shapes["weight_ih"]
    return nn.LSTMCell(inputs, rows // LSTM_GATES, bias="bias_ih" in layer.shapes, device="meta")


def _linear(layer: StoredLayer) -> nn.Linear:
    rows, cols = layer.shapes["weight"]
    return nn.Linear(cols, rows, bias="bias" in layer.shapes, device="meta")


_LAYERS: Mapping[str, Callable[[StoredLayer], nn.Module]] = {
    "lstm": _lstm,
    "lstm_cell": _cell,
    "linear": _linear,
    "conv1d": _linear,
}

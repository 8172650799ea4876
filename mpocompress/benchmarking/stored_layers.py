"""The layers of a compressed file, each by itself: which there are, and one of them beside its dense twin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.compression.format import stored_mpo
from mpocompress.errors import FormatError
from mpocompress.layers.names import LSTM_GATES
from mpocompress.mpo.mpo import MPO
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell, MPOWeight
from mpocompress.reports.compression import MatrixReport, Report
from mpocompress.text import shown

_PARTS: Mapping[str, re.Pattern[str]] = {
    "lstm": re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(?P<level>\d+)(?P<reverse>_reverse)?"),
    "lstm_cell": re.compile(r"(?:weight|bias)_(?:ih|hh)"),
}
"""The tensors of a recurrent layer, by their names in it."""
_DAMAGED = "The file is damaged or was edited: compress the original checkpoint again."


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A layer with at least one compressed matrix, as names and shapes.

    Args:
        path: of the module; empty for the model itself.
        kind: `lstm` (all its levels and directions), `lstm_cell`, `linear` or `conv1d`.
        matrices: its compressed matrices, by their names in the layer.
        shapes: shape of every tensor of the dense layer, by its name in the layer; rows are outputs.
        kept: tensors that are no cores: name in the layer -> name in the dense model.
    """

    path: str
    kind: str
    matrices: Mapping[str, MatrixReport]
    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, str]

    @property
    def likeness(self) -> object:
        """Equal for layers that run alike: the same kind, shapes, sites and bonds."""
        cores = ((name, one.row_dims, one.col_dims, one.anti_aligned, one.bonds) for name, one in self.matrices.items())
        return self.kind, tuple(cores), tuple(self.shapes.items())

    @property
    def tensors(self) -> tuple[str, ...]:
        """Its compressed matrices and what they stand for, by their names in the file and in the dense model."""
        return tuple(name for one in self.matrices.values() for name in (one.name, *one.members))

    @property
    def dense_parameters(self) -> int:
        """Of its compressed matrices, dense."""
        return sum(one.dense_parameters for one in self.matrices.values())

    @property
    def parameters(self) -> int:
        """Of their cores."""
        return sum(one.parameters for one in self.matrices.values())

    def parts(self, matrix: MatrixReport) -> tuple[str, ...]:
        """The tensors of the layer that a matrix of it stands for, by their names in the layer."""
        if self.kind not in _PARTS:
            return ("weight",)
        return tuple(_inside(self.path, member) for member in matrix.members)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Twins:
    """One layer twice, in float32: dense, and what it takes to make it with cores. Both compute the same.

    Args:
        dense: torch's own layer; its weights are the cores multiplied out.
        mpos: the decompositions, by their names in the layer.
    """

    dense: nn.Module
    mpos: Mapping[str, MPO]

    def compressed(self, execution: Execution) -> nn.Module:
        """A new layer that holds the cores.

        Args:
            execution: how it runs.

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


def stored_layers(report: Report, names: Mapping[str, TensorInfo], *, where: str) -> tuple[StoredLayer, ...]:
    """The layers of a compressed file that have a compressed matrix.

    Args:
        report: the report in the file.
        names: the tensors of the file.
        where: the file, for messages.

    Returns:
        The layers, in file order: the levels and directions of one LSTM together, every other matrix by itself.

    Raises:
        FormatError: a tied tensor whose values are not in the file.
    """
    shapes = {name: info.shape for name, info in names.items()} | {
        member: (matrix.shape[0], columns)
        for matrix in report.matrices
        for member, columns in zip(matrix.members, matrix.member_columns, strict=True)
    }
    for tied, name in report.aliases.items():
        if name not in shapes:
            raise FormatError(
                where=f"{where}, {shown(tied)}",
                found=f"a tie to {shown(name)}, which is not there",
                why="a tied tensor has the values of another one",
                action=_DAMAGED,
            )
        shapes.setdefault(tied, shapes[name])
    groups: dict[tuple[str, str, str], list[MatrixReport]] = {}
    for matrix in report.compressed:
        alone = "" if matrix.kind in _PARTS else matrix.name
        groups.setdefault((matrix.layer, matrix.kind, alone), []).append(matrix)
    return tuple(_stored(path, kind, matrices, shapes, report.aliases) for (path, kind, _), matrices in groups.items())


def _stored(
    path: str,
    kind: str,
    matrices: list[MatrixReport],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
) -> StoredLayer:
    """One layer, of its compressed matrices and the tensors beside them."""
    if kind in _PARTS:
        found = dict(_recurrent(path, kind, shapes))
    else:
        weight, bias = matrices[0].members[0], f"{path}.bias" if path else "bias"
        found = {"weight": weight}
        if _inside(path, weight) == "weight" and shapes.get(bias) == (matrices[0].shape[0],):
            found["bias"] = bias
    cut = {member for matrix in matrices for member in matrix.members}
    return StoredLayer(
        path=path,
        kind=kind,
        matrices={_inside(path, matrix.name) if kind in _PARTS else "weight": matrix for matrix in matrices},
        shapes={part: shapes[name] for part, name in sorted(found.items())},
        kept={part: aliases.get(name, name) for part, name in found.items() if name not in cut},
    )


def twins(layer: StoredLayer, checkpoint: Checkpoint, report: Report) -> Twins:
    """Read one layer and put it together, dense and compressed.

    Args:
        layer: the layer.
        checkpoint: the open file.
        report: the report in it.

    Returns:
        Both layers, in float32.

    Raises:
        FormatError: cores that hold NaN or Inf, or tensors that make no layer of this kind.
    """
    mpos = {name: _mpo(matrix, checkpoint) for name, matrix in layer.matrices.items()}
    state = {part: _kept(name, report, checkpoint) for part, name in layer.kept.items()}
    for name, matrix in layer.matrices.items():
        columns = torch.split(mpos[name].to_matrix(), list(matrix.member_columns), dim=1)
        state |= zip(layer.parts(matrix), columns, strict=True)
    try:
        dense = _LAYERS[layer.kind](layer)
        dense.load_state_dict({part: tensor.contiguous() for part, tensor in state.items()}, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        raise FormatError(
            where=f"{checkpoint.path.name}, {shown(layer.path)}",
            found=f"tensors {', '.join(f'{shown(part)} {shape}' for part, shape in layer.shapes.items())}",
            why=f"they do not make a layer of kind {layer.kind}",
            action=_DAMAGED,
        ) from error
    return Twins(dense=dense.eval().requires_grad_(requires_grad=False), mpos=mpos)


def _recurrent(path: str, kind: str, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """The tensors of a recurrent layer: name in the layer, name in the dense model."""
    pairs = ((_inside(path, name), name) for name in names if not path or name.startswith(f"{path}."))
    return ((part, name) for part, name in pairs if _PARTS[kind].fullmatch(part))


def _inside(path: str, name: str) -> str:
    return name.removeprefix(f"{path}.") if path else name


def _mpo(matrix: MatrixReport, checkpoint: Checkpoint) -> MPO:
    """A decomposition in float32, in memory of its own."""
    mpo = stored_mpo(matrix, checkpoint.tensor, where=checkpoint.path.name)
    return MPO(cores=tuple(core.to(torch.float32, copy=True) for core in mpo.cores), sites=mpo.sites)


def _kept(name: str, report: Report, checkpoint: Checkpoint) -> Tensor:
    """A tensor of the dense model in float32: one of the file, or what a tie to a compressed weight means."""
    if name in checkpoint.tensors:
        return checkpoint.tensor(name).to(torch.float32, copy=True)
    matrix = next(one for one in report.compressed if name in one.members)
    columns = torch.split(_mpo(matrix, checkpoint).to_matrix(), list(matrix.member_columns), dim=1)
    return columns[matrix.members.index(name)]


def _lstm(layer: StoredLayer) -> nn.LSTM:
    found = [match for part in layer.shapes if (match := _PARTS["lstm"].fullmatch(part)) is not None]
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

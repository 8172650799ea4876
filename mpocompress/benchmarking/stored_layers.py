"""The layers of a compressed file, and pairs of a compressed layer and its dense twin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.compression.core_tensors import stored_mpo
from mpocompress.errors import FormatError
from mpocompress.layers.names import LSTM_GATES
from mpocompress.mpo.mpo import MPO
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell, MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import shown

_PARTS: Mapping[str, re.Pattern[str]] = {
    "lstm": re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(?P<level>\d+)(?P<reverse>_reverse)?"),
    "lstm_cell": re.compile(r"(?:weight|bias)_(?:ih|hh)"),
}
"""Names of the tensors in a recurrent layer."""
_RECOMPRESS = "The file is damaged or was edited: compress the original checkpoint again."


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """Names and shapes of a layer with at least one compressed matrix.

    Args:
        path: path of the module; empty for the model itself.
        kind: `lstm` (all levels and directions), `lstm_cell`, `linear` or `conv1d`.
        matrices: name in the layer -> compressed matrix.
        shapes: name in the layer -> shape of the dense tensor; rows are outputs.
        uncompressed: name in the layer -> name in the dense model, for tensors that are not compressed.
    """

    path: str
    kind: str
    matrices: Mapping[str, MatrixReport]
    shapes: Mapping[str, tuple[int, ...]]
    uncompressed: Mapping[str, str]

    @property
    def signature(self) -> object:
        """Kind, shapes, sites and bonds; equal for layers that take the same time."""
        cores = (
            (name, matrix.row_dims, matrix.col_dims, matrix.anti_aligned, matrix.bonds)
            for name, matrix in self.matrices.items()
        )
        return self.kind, tuple(cores), tuple(self.shapes.items())

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the compressed matrices in the file, and of their members in the dense model."""
        return tuple(name for matrix in self.matrices.values() for name in (matrix.name, *matrix.members))

    @property
    def dense_parameters(self) -> int:
        """Dense parameters of the compressed matrices."""
        return sum(matrix.dense_parameters for matrix in self.matrices.values())

    @property
    def parameters(self) -> int:
        """Parameters of the cores."""
        return sum(matrix.parameters for matrix in self.matrices.values())

    def parts(self, matrix: MatrixReport) -> tuple[str, ...]:
        """Return the names in the layer of the members of a matrix."""
        if self.kind not in _PARTS:
            return ("weight",)
        return tuple(_local_name(self.path, member) for member in matrix.members)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPair:
    """A dense layer and its compressed twin, in float32; both compute the same.

    Args:
        dense: torch's own layer; its weights are the contracted cores.
        mpos: name in the layer -> decomposition.
    """

    dense: nn.Module
    mpos: Mapping[str, MPO]

    def compressed(self, execution: Execution) -> nn.Module:
        """Return a new layer with the cores; layers of several calls share their memory.

        Args:
            execution: execution mode.
        """
        weights = {name: MPOWeight(mpo, requires_grad=False) for name, mpo in self.mpos.items()}
        if isinstance(self.dense, nn.LSTM):
            return MPOLSTM.replacing(self.dense, weights, execution=execution)
        if isinstance(self.dense, nn.LSTMCell):
            return MPOLSTMCell.replacing(self.dense, weights, execution=execution)
        (weight,) = weights.values()
        return MPOLinear.replacing(self.dense, weight, execution=execution)


def stored_layers(report: Report, names: Mapping[str, TensorInfo], *, where: str) -> tuple[StoredLayer, ...]:
    """Return the layers of a compressed file that have a compressed matrix.

    Args:
        report: the report in the file.
        names: the tensors of the file.
        where: the file, for errors.

    Returns:
        The layers, in file order. All levels and directions of an LSTM are one layer; any other matrix is a layer.

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
                found=f"a tie to {shown(name)}, which is not in the file",
                why="a tied tensor has the values of another tensor",
                action=_RECOMPRESS,
            )
        shapes.setdefault(tied, shapes[name])
    groups: dict[tuple[str, str, str], list[MatrixReport]] = {}
    for matrix in report.compressed:
        name = "" if matrix.kind in _PARTS else matrix.name
        groups.setdefault((matrix.layer, matrix.kind, name), []).append(matrix)
    return tuple(
        _stored_layer(path, kind, matrices, shapes, report.aliases) for (path, kind, _), matrices in groups.items()
    )


def _stored_layer(
    path: str,
    kind: str,
    matrices: list[MatrixReport],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
) -> StoredLayer:
    """Collect the tensors of a layer by its compressed matrices."""
    if kind in _PARTS:
        names = dict(_recurrent(path, kind, shapes))
    else:
        weight, bias = matrices[0].members[0], f"{path}.bias" if path else "bias"
        names = {"weight": weight}
        if _local_name(path, weight) == "weight" and shapes.get(bias) == (matrices[0].shape[0],):
            names["bias"] = bias
    compressed = {member for matrix in matrices for member in matrix.members}
    return StoredLayer(
        path=path,
        kind=kind,
        matrices={_local_name(path, matrix.name) if kind in _PARTS else "weight": matrix for matrix in matrices},
        shapes={part: shapes[name] for part, name in sorted(names.items())},
        uncompressed={part: aliases.get(name, name) for part, name in names.items() if name not in compressed},
    )


def load_pair(layer: StoredLayer, checkpoint: Checkpoint, report: Report) -> LayerPair:
    """Read a layer, and build it dense and compressed.

    Args:
        layer: the layer.
        checkpoint: the open file.
        report: the report in it.

    Raises:
        FormatError: cores with NaN or Inf, or tensors that do not match the kind of the layer.
    """
    mpos = {name: _mpo(matrix, checkpoint) for name, matrix in layer.matrices.items()}
    state = {part: _dense_tensor(name, report, checkpoint) for part, name in layer.uncompressed.items()}
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
            why=f"they do not match a layer of kind {layer.kind}",
            action=_RECOMPRESS,
        ) from error
    return LayerPair(dense=dense.eval().requires_grad_(requires_grad=False), mpos=mpos)


def _recurrent(path: str, kind: str, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Return (name in the layer, name in the dense model) of the tensors of a recurrent layer."""
    pairs = ((_local_name(path, name), name) for name in names if not path or name.startswith(f"{path}."))
    return ((part, name) for part, name in pairs if _PARTS[kind].fullmatch(part))


def _local_name(path: str, name: str) -> str:
    return name.removeprefix(f"{path}.") if path else name


def _mpo(matrix: MatrixReport, checkpoint: Checkpoint) -> MPO:
    """Read a decomposition as float32, in new memory."""
    mpo = stored_mpo(matrix, checkpoint.tensor, where=checkpoint.path.name)
    return MPO(cores=tuple(core.to(torch.float32, copy=True) for core in mpo.cores), sites=mpo.sites)


def _dense_tensor(name: str, report: Report, checkpoint: Checkpoint) -> Tensor:
    """Return a tensor of the dense model as float32: from the file, or from the cores that it is tied to."""
    if name in checkpoint.tensors:
        return checkpoint.tensor(name).to(torch.float32, copy=True)
    matrix = next(compressed for compressed in report.compressed if name in compressed.members)
    columns = torch.split(_mpo(matrix, checkpoint).to_matrix(), list(matrix.member_columns), dim=1)
    return columns[matrix.members.index(name)]


def _lstm(layer: StoredLayer) -> nn.LSTM:
    matches = [match for part in layer.shapes if (match := _PARTS["lstm"].fullmatch(part)) is not None]
    projection = layer.shapes.get("weight_hr_l0")
    return nn.LSTM(
        layer.shapes["weight_ih_l0"][1],
        layer.shapes["weight_hh_l0"][0] // LSTM_GATES,
        num_layers=1 + max(int(match["level"]) for match in matches),
        bias="bias_ih_l0" in layer.shapes,
        bidirectional=any(match["reverse"] for match in matches),
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

"""Group the tensors of a layer by their names, and combine them into matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.layers.names import RECURRENT, joint_name
from mpocompress.layers.selection import Selection
from mpocompress.layers.specs import KindFrom, LayerKind, LayerSpec, MatrixSpec, Member


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKey:
    """Path of a module, and what distinguishes layers within one module.

    Args:
        layer: path of the module.
        suffix: level and direction of a recurrent layer; otherwise the last part of the tensor name.
        recurrent: whether the names are those of a recurrent layer.
    """

    layer: str
    suffix: str
    recurrent: bool

    @property
    def kind(self) -> LayerKind:
        """Kind of the layer according to its names."""
        return "linear" if not self.recurrent else "lstm" if self.suffix else "lstm_cell"

    def name(self, part: str) -> str:
        """Return the full name of a tensor of this layer, or of its module."""
        leaf = f"weight_{part}{self.suffix}" if self.recurrent else part
        return f"{self.layer}.{leaf}" if self.layer else leaf


def layer_key(name: str, *, as_matrix: bool) -> tuple[LayerKey, str]:
    """Return the layer of a tensor, and its part there: `ih`, `hh`, `hr` or `weight`.

    Args:
        name: name of the tensor.
        as_matrix: treat it as a matrix of its own, whatever its name.

    Example:
        >>> key, part = layer_key("lstm.weight_hh_l0", as_matrix=False)
        >>> key.layer, part, key.name("ih")
        ('lstm', 'hh', 'lstm.weight_ih_l0')
    """
    match = RECURRENT.match(name)
    if match is None or as_matrix:
        layer, _, leaf = name.rpartition(".")
        return LayerKey(layer=layer, suffix=leaf, recurrent=False), "weight"
    suffix = (match["level"] or "") + (match["reverse"] or "")
    return LayerKey(layer=match["layer"] or "", suffix=suffix, recurrent=True), match["part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """The tensors of one layer.

    Args:
        kind: kind of the layer.
        kind_from: source of that knowledge.
        members: part -> tensor; filled while tensors are grouped.
    """

    kind: LayerKind
    kind_from: KindFrom
    members: dict[str, Member] = field(default_factory=dict)


def build_layer(key: LayerKey, parts: LayerParts, selection: Selection) -> tuple[LayerSpec | None, dict[str, str]]:
    """Combine the tensors of a layer into matrices.

    Args:
        key: the layer.
        parts: its tensors.
        selection: the smallest side, and the form of LSTM weights.

    Returns:
        The layer, None if none of its tensors is compressed; and tensor name -> reason for those that are not.
    """
    members = parts.members
    ordered = [members[part] for part in ("weight", "ih", "hh", "hr") if part in members]
    joint = _joint(parts) if selection.lstm != "separate" else None
    if joint is not None and min(joint.shape) < selection.min_side:
        joint = None
    joined = joint.members if joint is not None else ()  # a thin weight may be part of the joint matrix
    small = [member for member in ordered if min(member.shape) < selection.min_side and member not in joined]
    separate = tuple(
        MatrixSpec(name=member.name, members=(member,), kind_from=parts.kind_from)
        for member in ordered
        if member not in small
    )
    forms = [separate] if separate else []
    if joint is not None:
        with_joint = (joint, *(matrix for matrix in separate if matrix.members[0] not in joined))
        forms = [with_joint, separate] if selection.lstm == "auto" else [with_joint]
    reasons = {
        member.name: f"a side of {min(member.shape)}, below the smallest that is compressed ({selection.min_side})"
        for member in small
    }
    return (LayerSpec(name=key.layer, kind=parts.kind, forms=tuple(forms)) if forms else None), reasons


def _joint(parts: LayerParts) -> MatrixSpec | None:
    """The matrix [W_ih W_hh], if both have one dtype and the same number of rows."""
    if "ih" not in parts.members or "hh" not in parts.members:
        return None
    inputs, hidden = parts.members["ih"], parts.members["hh"]
    if inputs.dtype != hidden.dtype or inputs.shape[0] != hidden.shape[0]:
        return None
    return MatrixSpec(name=joint_name(inputs.name), members=(inputs, hidden), kind_from=parts.kind_from)


def matrix_member(info: TensorInfo, aliases: tuple[str, ...], *, transposed: bool) -> Member:
    """Return a tensor as part of a matrix whose rows are outputs.

    Args:
        info: a tensor of two dimensions.
        aliases: its other names.
        transposed: whether its rows are inputs.
    """
    rows, cols = reversed(info.shape) if transposed else info.shape
    return Member(name=info.name, shape=(rows, cols), dtype=info.dtype.name, transposed=transposed, aliases=aliases)

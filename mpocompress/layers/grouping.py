"""The tensors of a layer put together: by their names into units, and those into matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.layers.names import RECURRENT, joint_name
from mpocompress.layers.selection import Selection
from mpocompress.layers.specs import KindFrom, LayerKind, LayerSpec, MatrixSpec, Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the tensors of one layer stand: path of the module, and what distinguishes layers within a module.

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
        """What layer it is if it is one."""
        return "linear" if not self.recurrent else "lstm" if self.suffix else "lstm_cell"

    def name(self, part: str) -> str:
        """Full name of a tensor of this layer, or of its module."""
        leaf = f"weight_{part}{self.suffix}" if self.recurrent else part
        return f"{self.layer}.{leaf}" if self.layer else leaf


def place_of(name: str, *, as_matrix: bool) -> tuple[Place, str]:
    """Where a tensor belongs.

    Args:
        name: its name.
        as_matrix: whether to take it for a matrix by itself, whatever its name.

    Returns:
        The place, and which part the tensor is there: `ih`, `hh`, `hr` or `weight`.

    Example:
        >>> place, part = place_of("lstm.weight_hh_l0", as_matrix=False)
        >>> place.layer, part, place.name("ih")
        ('lstm', 'hh', 'lstm.weight_ih_l0')
    """
    match = RECURRENT.match(name)
    if match is None or as_matrix:
        layer, _, leaf = name.rpartition(".")
        return Place(layer=layer, suffix=leaf, recurrent=False), "weight"
    suffix = (match["level"] or "") + (match["reverse"] or "")
    return Place(layer=match["layer"] or "", suffix=suffix, recurrent=True), match["part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A layer that is being put together.

    Args:
        kind: what it is.
        kind_from: from where that is known.
        members: part -> tensor; filled while the layer is put together.
    """

    kind: LayerKind
    kind_from: KindFrom
    members: dict[str, Member] = field(default_factory=dict)


def assemble(place: Place, unit: Unit, selection: Selection) -> tuple[LayerSpec | None, dict[str, str]]:
    """One layer from its tensors.

    Args:
        place: where they stand.
        unit: the tensors.
        selection: the smallest side, and in what form LSTM weights are wanted.

    Returns:
        The layer, None where nothing of it is left; and the reasons for the tensors that stay out of it.
    """
    members = unit.members
    in_order = [members[part] for part in ("weight", "ih", "hh", "hr") if part in members]
    joint = _joint(unit) if selection.lstm != "separate" else None
    if joint is not None and min(joint.shape) < selection.min_side:
        joint = None
    joined = joint.members if joint is not None else ()  # a thin weight may go with the other, or beside it
    small = [member for member in in_order if min(member.shape) < selection.min_side and member not in joined]
    apart = tuple(
        MatrixSpec(name=member.name, members=(member,), kind_from=unit.kind_from)
        for member in in_order
        if member not in small
    )
    forms = [apart] if apart else []
    if joint is not None:
        together = (joint, *(matrix for matrix in apart if matrix.members[0] not in joined))
        forms = [together, apart] if selection.lstm == "auto" else [together]
    reasons = {
        member.name: f"a side of {min(member.shape)}, under the smallest that is compressed ({selection.min_side})"
        for member in small
    }
    return (LayerSpec(name=place.layer, kind=unit.kind, forms=tuple(forms)) if forms else None), reasons


def _joint(unit: Unit) -> MatrixSpec | None:
    """The matrix [W_ih W_hh], where both are there in one dtype, with as many rows."""
    members = unit.members
    if "ih" not in members or "hh" not in members:
        return None
    inputs, hidden = members["ih"], members["hh"]
    if inputs.dtype != hidden.dtype or inputs.shape[0] != hidden.shape[0]:
        return None
    return MatrixSpec(name=joint_name(inputs.name), members=(inputs, hidden), kind_from=unit.kind_from)


def member(info: TensorInfo, aliases: tuple[str, ...], *, transposed: bool) -> Member:
    """A tensor as part of a matrix.

    Args:
        info: the tensor; it has two dims.
        aliases: its other names.
        transposed: whether its rows are inputs.

    Returns:
        The member, its rows being outputs.
    """
    rows, cols = reversed(info.shape) if transposed else info.shape
    return Member(name=info.name, shape=(rows, cols), dtype=info.dtype.name, transposed=transposed, aliases=aliases)

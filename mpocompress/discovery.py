"""Names and shapes in, layers out: what of a state dict is an LSTM or Linear weight, and why the rest is not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from mpocompress.checkpoint import TensorInfo
from mpocompress.decomposition import DTYPES
from mpocompress.errors import SelectionError
from mpocompress.layers import MIN_SIDE, LayerKind, LayerSpec, MatrixSpec, Member, joint_name
from mpocompress.report import Skipped
from mpocompress.truncation import matches

LSTMChoice = Literal["auto", "joint", "separate"]
ForcedKind = Literal["lstm", "linear", "embedding"]

LSTM_GATES = 4
OTHER_GATES: Mapping[float, str] = {3: "GRU", 1: "plain RNN"}

_RECURRENT = re.compile(r"^(?:(?P<layer>.*)\.)?weight_(?P<part>ih|hh|hr)(?P<level>_l\d+)?(?P<reverse>_reverse)?$")
_EMBEDDING = re.compile(r"(^|[._])(\w*emb(ed(ding)?s?)?|wte|wpe|lookup|codebook|vocab\w*)([._]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which layers to compress, and in what form.

    Args:
        include: globs of layer or tensor names; empty for all.
        exclude: globs of layer or tensor names to leave dense.
        kinds: glob of tensor names -> kind, against what name and shape would say.
        min_side: matrices with a smaller side stay dense.
        lstm: input-to-hidden and hidden-to-hidden weights as one matrix, apart, or whichever is better.

    Raises:
        SelectionError: a choice or kind that does not exist, a smallest side below 1, or one glob in the place of
            several.

    Example:
        >>> Selection(exclude=("head*",)).min_side
        64
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: Mapping[str, ForcedKind] = field(default_factory=dict)
    min_side: int = MIN_SIDE
    lstm: LSTMChoice = "auto"

    def __post_init__(self) -> None:
        """Check the choices."""
        for where, found, holds, wanted in (
            ("lstm", self.lstm, self.lstm in get_args(LSTMChoice), f"one of {', '.join(get_args(LSTMChoice))}"),
            ("min_side", self.min_side, type(self.min_side) is int and self.min_side >= 1, "an integer of 1 or more"),
            ("include", self.include, not isinstance(self.include, str), "a tuple of globs"),
            ("exclude", self.exclude, not isinstance(self.exclude, str), "a tuple of globs"),
            (
                "kinds",
                dict(self.kinds),
                set(self.kinds.values()) <= set(get_args(ForcedKind)),
                f"globs with a kind of {', '.join(get_args(ForcedKind))}",
            ),
        ):
            if not holds:
                raise SelectionError(
                    where=where, found=f"got {found!r}", why=f"it must be {wanted}", action="Give such a value."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What was found in a state dict.

    Args:
        layers: the compressible layers, in file order.
        skipped: every other tensor, in file order.
    """

    layers: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]


def discover(
    tensors: Mapping[str, TensorInfo],
    selection: Selection = Selection(),
) -> Discovery:
    """Find the compressible layers of a state dict by name and shape.

    Args:
        tensors: every tensor of the state dict, in file order.
        selection: which of them are wanted.

    Returns:
        Layers and skipped tensors; every tensor that is no alias is in a layer or skipped.

    Raises:
        SelectionError: a glob that matches nothing, or a forced kind that a tensor cannot be.

    Example:
        >>> import torch
        >>> info = TensorInfo(name="fc.weight", shape=(128, 64), dtype=torch.float32, size_bytes=32768, alias_of=None)
        >>> discover({"fc.weight": info}).layers[0].kind
        'linear'
    """
    forced = _forced_kinds(tensors, selection)
    aliases: dict[str, list[str]] = {}
    for name, info in tensors.items():
        if info.alias_of is not None:
            aliases.setdefault(info.alias_of, []).append(name)
    reasons: dict[str, str] = {}
    units: dict[_Place, dict[str, Member]] = {}
    for name, info in tensors.items():
        if info.alias_of is not None:
            continue
        place, part = _place(name, forced.get(name))
        reason = (
            _not_a_matrix(info)
            or _embedding(name, tensors, forced, aliases.get(name, []))
            or _unwanted((name, *aliases.get(name, [])), selection)
            or _not_a_layer(name, place, part, tensors, forced)
        )
        if reason:
            reasons[name] = reason
        else:
            units.setdefault(place, {})[part] = _member(info)
    layers = []
    for place, members in units.items():
        found, left_out = _assemble(place, members, selection)
        reasons.update(left_out)
        if found is not None:
            layers.append(found)
    skipped = (
        Skipped(name=name, shape=info.shape, reason=reasons[name]) for name, info in tensors.items() if name in reasons
    )
    return Discovery(layers=tuple(layers), skipped=tuple(skipped))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the tensors of one layer stand: path of the module, and what distinguishes layers within a module.

    Args:
        layer: path of the module.
        suffix: level and direction of a recurrent layer; otherwise the last part of the tensor name.
        recurrent: whether the names are those of a recurrent layer.
    """

    layer: str
    suffix: str
    recurrent: bool

    def name(self, part: str) -> str:
        """Full name of a tensor of this layer, or of its module."""
        leaf = f"weight_{part}{self.suffix}" if self.recurrent else part
        return f"{self.layer}.{leaf}" if self.layer else leaf


def _place(name: str, forced: ForcedKind | None) -> tuple[_Place, str]:
    """Where a tensor belongs, and which part it is there: `ih`, `hh`, `hr` or `weight`."""
    match = _RECURRENT.match(name)
    if match is None or forced == "linear":
        layer, _, leaf = name.rpartition(".")
        return _Place(layer=layer, suffix=leaf, recurrent=False), "weight"
    suffix = (match["level"] or "") + (match["reverse"] or "")
    return _Place(layer=match["layer"] or "", suffix=suffix, recurrent=True), match["part"]


def _not_a_matrix(info: TensorInfo) -> str:
    """Why a tensor cannot be decomposed at all; empty when it can."""
    if len(info.shape) != 2:
        known = {0: "a scalar", 1: "1-D: a bias, a norm or a statistic"}
        return known.get(len(info.shape), f"{len(info.shape)}-D: not an LSTM or Linear weight")
    if info.dtype not in DTYPES:
        return f"{_dtype(info)}: only float16, bfloat16, float32 and float64 weights are compressed"
    return "empty" if 0 in info.shape else ""


def _embedding(
    name: str, tensors: Mapping[str, TensorInfo], forced: Mapping[str, ForcedKind], aliases: Collection[str]
) -> str:
    """Why a tensor is taken for an embedding, or is tied to one; empty when it is not."""
    for one in (name, *aliases):
        layer, _, leaf = one.rpartition(".")
        has_bias = (f"{layer}.bias" if layer else "bias") in tensors
        looks = leaf == "weight" and not has_bias and _EMBEDDING.search(layer) is not None
        if forced.get(one) == "embedding" or (looks and one not in forced):
            return "an embedding" + (f", tied to {next(iter(aliases))}" if aliases else "")
    return ""


def _unwanted(names: Collection[str], selection: Selection) -> str:
    """Why a tensor was not asked for under any of its names; empty when it was."""
    if selection.include and not any(_matches(selection.include, name) for name in names):
        return "not among the layers asked for"
    return "left out as asked" if any(_matches(selection.exclude, name) for name in names) else ""


def _not_a_layer(
    name: str, place: _Place, part: str, tensors: Mapping[str, TensorInfo], forced: Mapping[str, ForcedKind]
) -> str:
    """Why a matrix is not the weight of an LSTM or Linear layer; empty when it is."""
    if name in forced:
        return ""
    if place.recurrent:
        return _not_an_lstm(place, tensors)
    if place.suffix != "weight":
        return "not an LSTM or Linear weight by its name"
    bias, shape = tensors.get(place.name("bias")), tensors[name].shape
    if bias is not None and bias.shape == (shape[1],) and shape[0] != shape[1]:
        return "its bias has one entry a column: a transposed (Conv1D) weight, which is not compressed"
    if bias is not None and bias.shape != (shape[0],):
        return f"its bias of shape {bias.shape} does not fit a Linear layer"
    return ""


def _not_an_lstm(place: _Place, tensors: Mapping[str, TensorInfo]) -> str:
    """Why recurrent weights are not those of an LSTM, whichever of them are wanted; empty when they are."""
    hidden, projection, inputs = (tensors.get(place.name(part)) for part in ("hh", "hr", "ih"))
    if hidden is None or len(hidden.shape) != 2:
        return "an LSTM weight without its weight_hh"
    size = projection.shape[-1] if projection is not None else hidden.shape[1]
    gates = hidden.shape[0] / size if size else 0.0
    if gates != LSTM_GATES:
        found = OTHER_GATES.get(gates, "layer of unknown kind")
        return f"a {found}, by {hidden.shape[0]} rows to a hidden size of {size}: only LSTM is compressed"
    if inputs is not None and inputs.shape[:1] != hidden.shape[:1]:
        return "weight_ih and weight_hh have different numbers of rows"
    return ""


def _assemble(
    place: _Place, members: Mapping[str, Member], selection: Selection
) -> tuple[LayerSpec | None, dict[str, str]]:
    """One layer from its tensors, and the reasons for those that stay out of it."""
    kind: LayerKind = "linear" if not place.recurrent else "lstm" if place.suffix else "lstm_cell"
    in_order = [members[part] for part in ("weight", "ih", "hh", "hr") if part in members]
    joint = _joint(members) if selection.lstm != "separate" else None
    if joint is not None and min(joint.shape) < selection.min_side:
        joint = None
    joined = joint.members if joint is not None else ()  # a thin weight may go with the other, or beside it
    small = [member for member in in_order if min(member.shape) < selection.min_side and member not in joined]
    apart = tuple(MatrixSpec(name=member.name, members=(member,)) for member in in_order if member not in small)
    forms = [apart] if apart else []
    if joint is not None:
        together = (joint, *(matrix for matrix in apart if matrix.members[0] not in joined))
        forms = [together, apart] if selection.lstm == "auto" else [together]
    reasons = {
        member.name: f"a side of {min(member.shape)}, under the smallest that is compressed ({selection.min_side})"
        for member in small
    }
    return (LayerSpec(name=place.layer, kind=kind, forms=tuple(forms)) if forms else None), reasons


def _joint(members: Mapping[str, Member]) -> MatrixSpec | None:
    """The matrix [W_ih W_hh], where both are there in one dtype."""
    if "ih" not in members or "hh" not in members or members["ih"].dtype != members["hh"].dtype:
        return None
    return MatrixSpec(name=joint_name(members["ih"].name), members=(members["ih"], members["hh"]))


def _forced_kinds(tensors: Mapping[str, TensorInfo], selection: Selection) -> dict[str, ForcedKind]:
    """The kind that was asked for, by tensor name; refuses globs that match nothing, and kinds that cannot be."""
    names = list(tensors)
    for what, globs in (("include", selection.include), ("exclude", selection.exclude)):
        for glob in globs:
            if not any(_matches((glob,), name) for name in names):
                raise _nothing_matches(f"{what} pattern {glob!r}", "no layer and no tensor", names)
    forced: dict[str, ForcedKind] = {}
    for glob, kind in selection.kinds.items():
        hits = [name for name in names if matches(glob, name)]
        if not hits:
            raise _nothing_matches(f"kind pattern {glob!r}", "no tensor", names)
        for name in hits:
            _check_kind(name, tensors[name], kind)
            forced[tensors[name].alias_of or name] = kind
    return forced


def _nothing_matches(where: str, what: str, names: list[str]) -> SelectionError:
    return SelectionError(
        where=where,
        found=f"matches {what}",
        why="a pattern that selects nothing is a mistake",
        action=f"Names look like {', '.join(names[:3])}.",
    )


def _check_kind(name: str, info: TensorInfo, kind: ForcedKind) -> None:
    """Refuse a kind that the shape or the name of a tensor rules out."""
    problem = None
    if kind in ("linear", "embedding") and len(info.shape) != 2:
        problem = f"a {len(info.shape)}-D tensor"
    elif kind == "lstm" and (not _place(name, None)[0].recurrent or len(info.shape) != 2 or info.shape[0] % 4):
        problem = f"shape {info.shape} under a name without weight_ih, weight_hh or weight_hr"
    if problem is not None:
        raise SelectionError(
            where=name,
            found=problem,
            why=f"that cannot be the weight of {'an ' if kind == 'embedding' else 'a '}{kind} layer",
            action="Narrow the pattern.",
        )


def _matches(globs: Collection[str], name: str) -> bool:
    """Whether a glob means a tensor, or the layer that it belongs to."""
    layer = _place(name, None)[0].layer
    return any(matches(glob, name) or (bool(layer) and matches(glob, layer)) for glob in globs)


def _member(info: TensorInfo) -> Member:
    rows, cols = info.shape
    return Member(name=info.name, shape=(rows, cols), dtype=_dtype(info))


def _dtype(info: TensorInfo) -> str:
    return str(info.dtype).removeprefix("torch.")

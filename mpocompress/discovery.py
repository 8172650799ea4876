"""Names and shapes in, layers out: what of a state dict is an LSTM or Linear weight, and why the rest is not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch

from mpocompress.checkpoint import TensorInfo
from mpocompress.errors import SelectionError
from mpocompress.layers import LayerKind, LayerSpec, MatrixSpec, Member, joint_name

LSTMChoice = Literal["auto", "joint", "separate"]
ForcedKind = Literal["lstm", "linear", "embedding"]

MIN_SIDE = 64
"""Matrices with a side below this stay dense by default: truncating a small output layer like the rest ruins models."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
GATES: Mapping[int, str] = {4: "lstm", 3: "GRU", 1: "plain RNN"}

_RECURRENT = re.compile(r"^(?P<layer>.*?)\.?weight_(?P<part>ih|hh|hr)(?P<level>_l\d+)?(?P<reverse>_reverse)?$")
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

    Example:
        >>> Selection(exclude=("head*",)).min_side
        64
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: Mapping[str, ForcedKind] = field(default_factory=dict)
    min_side: int = MIN_SIDE
    lstm: LSTMChoice = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A tensor that is passed through untouched.

    Args:
        name: its name.
        shape: its shape.
        reason: why, in words.
    """

    name: str
    shape: tuple[int, ...]
    reason: str


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
        >>> info = TensorInfo(name="fc.weight", shape=(128, 64), dtype=torch.float32, size_bytes=32768, alias_of=None)
        >>> discover({"fc.weight": info}).layers[0].kind
        'linear'
    """
    _check_patterns(tensors, selection)
    reasons: dict[str, str] = {}
    units: dict[tuple[str, str], dict[str, Member]] = {}
    for name, info in tensors.items():
        if info.alias_of is not None:
            continue
        reason = _why_not(name, tensors, selection)
        if reason is None:
            layer, part, suffix = _place(name)
            units.setdefault((layer, suffix), {})[part] = _member(info)
        else:
            reasons[name] = reason
    layers = []
    for (layer, suffix), members in units.items():
        found, left_out = _assemble(layer, suffix, members, selection)
        reasons.update(left_out)
        if found is not None:
            layers.append(found)
    skipped = []
    for name, info in tensors.items():
        if info.alias_of is None and name in reasons:
            skipped.append(Skipped(name=name, shape=info.shape, reason=reasons[name]))
    return Discovery(layers=tuple(layers), skipped=tuple(skipped))


def _why_not(name: str, tensors: Mapping[str, TensorInfo], selection: Selection) -> str | None:
    """The reason why a tensor is passed through, as far as it can be told from the tensor alone."""
    info = tensors[name]
    aliases = [other for other, one in tensors.items() if one.alias_of == name]
    layer, part, _ = _place(name)
    forced = next((kind for glob, kind in selection.kinds.items() if fnmatchcase(name, glob)), None)
    if len(info.shape) != 2:
        return {0: "a scalar", 1: "1-D: a bias, a norm or a statistic"}.get(
            len(info.shape), f"{len(info.shape)}-D: not an LSTM or Linear weight"
        )
    if info.dtype not in DTYPES:
        return f"{_dtype(info)}: only float16, bfloat16, float32 and float64 weights are compressed"
    if 0 in info.shape:
        return "empty"
    if forced == "embedding" or (forced is None and any(_is_embedding(one, tensors) for one in (name, *aliases))):
        return "an embedding" + (f", tied to {aliases[0]}" if aliases else "")
    if selection.include and not _matches(selection.include, name, layer):
        return "not among the layers asked for"
    if _matches(selection.exclude, name, layer):
        return "left out as asked"
    if forced == "linear" or part != "weight":
        return None
    if name.rpartition(".")[2] != "weight":
        return "not an LSTM or Linear weight by its name"
    bias = tensors.get(f"{layer}.bias" if layer else "bias")
    if bias is not None and bias.shape == (info.shape[1],) and info.shape[0] != info.shape[1]:
        return "its bias has one entry a column: a transposed (Conv1D) weight, which is not compressed"
    if bias is not None and bias.shape != (info.shape[0],):
        return f"its bias of shape {bias.shape} does not fit a Linear layer"
    return None


def _assemble(
    layer: str, suffix: str, members: Mapping[str, Member], selection: Selection
) -> tuple[LayerSpec | None, dict[str, str]]:
    """One layer from its tensors, and the reasons for those that stay out of it."""
    if "weight" in members:
        kind: LayerKind = "linear"
        (matrices, left_out) = _large_enough(members.values(), selection.min_side)
        return (LayerSpec(name=layer, kind=kind, forms=(matrices,)) if matrices else None), left_out
    reason = _why_no_lstm(members, selection)
    if reason is not None:
        return None, {member.name: reason for member in members.values()}
    kind = "lstm" if suffix else "lstm_cell"
    apart, left_out = _large_enough(members.values(), selection.min_side)
    joint = _joint(members) if selection.lstm != "separate" else None
    if joint is None or min(joint.shape) < selection.min_side:
        return (LayerSpec(name=layer, kind=kind, forms=(apart,)) if apart else None), left_out
    others = tuple(matrix for matrix in apart if matrix.name not in {member.name for member in joint.members})
    forms = [(joint, *others)]
    if selection.lstm == "auto" and not left_out:
        forms.append(apart)
    return LayerSpec(name=layer, kind=kind, forms=tuple(forms)), {
        name: why for name, why in left_out.items() if name not in {member.name for member in joint.members}
    }


def _why_no_lstm(members: Mapping[str, Member], selection: Selection) -> str | None:
    """The reason why recurrent weights are not those of an LSTM; None when they are, or were said to be."""
    hidden = members.get("hh")
    if hidden is None:
        if any(fnmatchcase(member.name, glob) for member in members.values() for glob in selection.kinds):
            return None
        return "an LSTM weight without its weight_hh"
    size = members["hr"].shape[1] if "hr" in members else hidden.shape[1]
    gates, rest = divmod(hidden.shape[0], size)
    found = "LSTM" if gates == 4 and not rest else GATES.get(gates if not rest else 0, "layer of unknown kind")
    if found == "LSTM":
        if "ih" in members and members["ih"].shape[0] != hidden.shape[0]:
            return "weight_ih and weight_hh have different numbers of rows"
        return None
    return f"a {found}, by {hidden.shape[0]} rows to a hidden size of {size}: only LSTM is compressed"


def _joint(members: Mapping[str, Member]) -> MatrixSpec | None:
    """The matrix [W_ih W_hh], where both are there in one dtype."""
    if "ih" not in members or "hh" not in members or members["ih"].dtype != members["hh"].dtype:
        return None
    return MatrixSpec(name=joint_name(members["ih"].name), members=(members["ih"], members["hh"]))


def _large_enough(members: Collection[Member], min_side: int) -> tuple[tuple[MatrixSpec, ...], dict[str, str]]:
    """Matrices of one tensor each, and the reasons for the tensors that are too small."""
    matrices = tuple(MatrixSpec(name=m.name, members=(m,)) for m in members if min(m.shape) >= min_side)
    small = {
        m.name: f"a side of {min(m.shape)}, under the smallest that is compressed ({min_side})"
        for m in members
        if min(m.shape) < min_side
    }
    return matrices, small


def _check_patterns(tensors: Mapping[str, TensorInfo], selection: Selection) -> None:
    """Refuse globs that match nothing, and forced kinds that cannot be."""
    for what, globs in (("include", selection.include), ("exclude", selection.exclude), ("kind", selection.kinds)):
        for glob in globs:
            hits = [name for name in tensors if _matches((glob,), name, "" if what == "kind" else _place(name)[0])]
            if not hits:
                raise SelectionError(
                    where=f"{what} pattern {glob!r}",
                    found="matches no tensor" if what == "kind" else "matches no layer and no tensor",
                    why="a pattern that selects nothing is a mistake",
                    action=f"Names look like {', '.join(list(tensors)[:3])}.",
                )
            for name in hits if what == "kind" else ():
                _check_kind(name, tensors[name], selection.kinds[glob])


def _check_kind(name: str, info: TensorInfo, kind: ForcedKind) -> None:
    """Refuse a kind that the shape or the name of a tensor rules out."""
    problem = None
    if kind in ("linear", "embedding") and len(info.shape) != 2:
        problem = f"a {len(info.shape)}-D tensor"
    elif kind == "lstm" and (_place(name)[1] == "weight" or len(info.shape) != 2 or info.shape[0] % 4):
        problem = f"shape {info.shape} under a name without weight_ih, weight_hh or weight_hr"
    if problem is not None:
        raise SelectionError(
            where=name,
            found=problem,
            why=f"that cannot be the weight of {'an ' if kind == 'embedding' else 'a '}{kind} layer",
            action="Narrow the pattern.",
        )


def _place(name: str) -> tuple[str, str, str]:
    """Path of the module, part (`ih`, `hh`, `hr` or `weight`) and suffix (level and direction) of a tensor name."""
    match = _RECURRENT.match(name)
    if match is None:
        return name.rpartition(".")[0], "weight", name.rpartition(".")[2]
    return match["layer"], match["part"], (match["level"] or "") + (match["reverse"] or "")


def _is_embedding(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a weight without bias has the name of an embedding."""
    layer, part, leaf = _place(name)
    has_bias = (f"{layer}.bias" if layer else "bias") in tensors
    return part == "weight" and leaf == "weight" and not has_bias and _EMBEDDING.search(layer) is not None


def _matches(globs: Collection[str], name: str, layer: str) -> bool:
    return any(fnmatchcase(name, glob) or (bool(layer) and fnmatchcase(layer, glob)) for glob in globs)


def _member(info: TensorInfo) -> Member:
    rows, cols = info.shape
    return Member(name=info.name, shape=(rows, cols), dtype=_dtype(info))


def _dtype(info: TensorInfo) -> str:
    return str(info.dtype).removeprefix("torch.")

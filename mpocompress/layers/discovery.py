"""Names and shapes in, layers out: what of a state dict is an LSTM or Linear weight, and why the rest is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.checkpoint.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from mpocompress.layers.evidence import Evidence, Witness
from mpocompress.layers.grouping import Place, Unit, assemble, member, place_of
from mpocompress.layers.model_classes import fit_model
from mpocompress.layers.names import LSTM_GATES
from mpocompress.layers.selection import Selection, forced_kinds, unwanted
from mpocompress.layers.specs import KindFrom, LayerKind, LayerSpec, Skipped
from mpocompress.layers.unsupported import obstacles
from mpocompress.user.model import UserModel

COMPRESSIBLE = (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)
OTHER_GATES: Mapping[float, str] = {3: "GRU", 1: "plain RNN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What was found in a state dict.

    Args:
        layers: the compressible layers, in file order.
        skipped: every other tensor, in file order.
        obstacles: what keeps weights from being compressed that could be saved in a plain form, in words.
        notes: what the reader should know, a sentence each.
    """

    layers: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]
    obstacles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def discover_in(checkpoint: Checkpoint, selection: Selection, model: UserModel | None) -> Discovery:
    """Find the compressible layers of a checkpoint with everything that is known of them; no tensor is read.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers are wanted.
        model: the user's own model, to tell layers by their classes; one named as text is imported and run.

    Returns:
        Layers and skipped tensors.

    Raises:
        SelectionError: a glob that matches nothing, or a forced kind that a tensor cannot be.
        ModelError: the model cannot be built, or is another one.
    """
    fitted = fit_model(model, {name: info.shape for name, info in checkpoint.tensors.items()})
    evidence = Evidence(
        classes=checkpoint.classes, model=fitted.classes, config=checkpoint.config, ties=checkpoint.metadata
    )
    found = discover(checkpoint.tensors, selection, evidence)
    return dataclasses.replace(found, notes=fitted.notes)


def discover(
    tensors: Mapping[str, TensorInfo],
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    evidence: Evidence = Evidence(),  # noqa: B008 (frozen)
) -> Discovery:
    """Find the compressible layers of a state dict.

    What a layer is comes from the surest source that says so: what was asked for, the class recorded in the file, the
    class in the user's own model, the configuration beside the weights, then name and shape.

    Args:
        tensors: every tensor of the state dict, in file order.
        selection: which of them are wanted.
        evidence: what is known beside names and shapes.

    Returns:
        Layers and skipped tensors; every tensor that is no alias is in a layer or skipped.

    Raises:
        SelectionError: a glob that matches nothing, or a forced kind that a tensor cannot be.

    Example:
        >>> info = TensorInfo(name="fc.weight", shape=(128, 64), dtype=FLOAT32)
        >>> discover({"fc.weight": info}).layers[0].kind
        'linear'
    """
    forced = forced_kinds(tensors, selection)
    witness = Witness(tensors, evidence)
    blocked = obstacles(tensors)
    reasons: dict[str, str] = {}
    units: dict[Place, Unit] = {}
    for name, info in tensors.items():
        if info.alias_of is not None:
            continue
        names = (name, *witness.aliases(name))
        wish = forced.get(name)
        place, part = place_of(name, as_matrix=wish in ("linear", "conv1d"))
        if wish is not None:
            kind: LayerKind = "conv1d" if wish == "conv1d" else place.kind
            verdict = _Verdict(kind=kind, kind_from="as asked", reason="an embedding" if wish == "embedding" else "")
            reason = _not_a_matrix(info) or verdict.reason or unwanted(names, selection)
        else:
            reason = (
                next((blocked[one] for one in names if one in blocked), "")
                or _not_a_matrix(info)
                or witness.embedding(name)
                or unwanted(names, selection)
            )
            verdict = _Verdict(reason=reason) if reason else _judged(name, place, tensors, witness, blocked)
        if reason or verdict.reason:
            reasons[name] = reason or verdict.reason
        else:
            unit = units.setdefault(place, Unit(kind=verdict.kind, kind_from=verdict.kind_from))
            unit.members[part] = member(info, names[1:], transposed=verdict.kind == "conv1d")
    layers = []
    for place, unit in units.items():
        found, left_out = assemble(place, unit, selection)
        reasons.update(left_out)
        if found is not None:
            layers.append(found)
    skipped = (
        Skipped(name=name, shape=info.shape, reason=reasons[name]) for name, info in tensors.items() if name in reasons
    )
    ways_out = dict.fromkeys(reason for name, reason in blocked.items() if reasons.get(name) == reason)
    return Discovery(layers=tuple(layers), skipped=tuple(skipped), obstacles=tuple(ways_out))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What the weight of a layer is taken for.

    Args:
        kind: what the layer is.
        kind_from: from where that is known.
        reason: why it is not compressed; empty when it is.
    """

    kind: LayerKind = "linear"
    kind_from: KindFrom = "name and shape"
    reason: str = ""


def _not_a_matrix(info: TensorInfo) -> str:
    """Why a tensor cannot be decomposed at all; empty when it can."""
    if len(info.shape) != 2:
        known = {0: "a scalar", 1: "1-D: a bias, a norm or a statistic"}
        return known.get(len(info.shape), f"{len(info.shape)}-D: not an LSTM or Linear weight")
    if info.dtype not in COMPRESSIBLE:
        return f"{info.dtype}: only float16, bfloat16, float32 and float64 weights are compressed"
    return "empty" if 0 in info.shape else ""


def _judged(
    name: str, place: Place, tensors: Mapping[str, TensorInfo], witness: Witness, blocked: Mapping[str, str]
) -> _Verdict:
    """What a matrix is the weight of, by the surest source; or why of nothing that is compressed."""
    ruling = witness.ruling(place.layer)
    if ruling is not None and ruling.kind in ("other", "embedding"):
        return _Verdict(reason=f"a weight of {ruling.class_name}, which is not compressed")
    if place.recurrent:
        sure = ruling is not None and ruling.kind in ("lstm", "lstm_cell")
        return _Verdict(
            kind=place.kind,
            kind_from=ruling.kind_from if ruling is not None and sure else "name and shape",
            reason=_not_an_lstm(place, tensors, blocked),
        )
    if place.suffix != "weight" or (ruling is not None and ruling.kind not in ("linear", "conv1d")):
        return _Verdict(reason="not an LSTM or Linear weight by its name")
    shape, bias = tensors[name].shape, tensors.get(place.name("bias"))
    if ruling is None:
        conv1d = witness.conv1d(place.layer, shape)
        verdict = _Verdict(kind="conv1d" if conv1d else "linear", kind_from=conv1d or "name and shape")
    else:
        verdict = _Verdict(kind="conv1d" if ruling.kind == "conv1d" else "linear", kind_from=ruling.kind_from)
    outputs = shape[1] if verdict.kind == "conv1d" else shape[0]
    if bias is not None and bias.shape != (outputs,):
        called = "Conv1D" if verdict.kind == "conv1d" else "Linear"
        return _Verdict(reason=f"its bias of shape {bias.shape} does not fit a {called} layer")
    return verdict


def _not_an_lstm(place: Place, tensors: Mapping[str, TensorInfo], blocked: Mapping[str, str]) -> str:
    """Why recurrent weights are not those of an LSTM, whichever of them are wanted; empty when they are."""
    hidden, projection, inputs = (tensors.get(place.name(part)) for part in ("hh", "hr", "ih"))
    if hidden is None or len(hidden.shape) != 2:
        path, _, leaf = place.name("hh").rpartition(".")
        inside = f"{path}.parametrizations.{leaf}." if path else f"parametrizations.{leaf}."
        pieces = (f"{inside}original0", f"{inside}original", *(place.name("hh") + end for end in ("_v", "_orig")))
        beside = next((blocked[one] for one in pieces if one in blocked), "")
        return f"its weight_hh is {beside}" if beside else "an LSTM weight without its weight_hh"
    if projection is not None and len(projection.shape) != 2:
        return f"its weight_hr of shape {projection.shape} does not fit an LSTM"
    size = projection.shape[1] if projection is not None else hidden.shape[1]
    gates = hidden.shape[0] / size if size else 0.0
    if gates != LSTM_GATES:
        found = OTHER_GATES.get(gates, "layer of unknown kind")
        return f"a {found}, by {hidden.shape[0]} rows to a hidden size of {size}: only LSTM is compressed"
    if inputs is not None and inputs.shape[:1] != hidden.shape[:1]:
        return "weight_ih and weight_hh have different numbers of rows"
    return ""

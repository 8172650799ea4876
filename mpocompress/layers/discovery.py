"""Find the compressible weights of a state dict by names and shapes, and why other tensors are not compressed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.checkpoint.deferred import Deferred
from mpocompress.checkpoint.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from mpocompress.layers.classifier import Classification, Hints, LayerClassifier
from mpocompress.layers.grouping import LayerKey, LayerParts, build_layer, layer_key, matrix_member
from mpocompress.layers.selection import ForcedKind, Selection, forced_kinds, unwanted
from mpocompress.layers.specs import LayerSpec, Skipped
from mpocompress.layers.unsupported import unsupported_weights

if TYPE_CHECKING:
    from mpocompress.layers import model_classes
    from mpocompress.user.model import UserModel
else:
    model_classes = Deferred("mpocompress.layers.model_classes")

COMPRESSIBLE_DTYPES = (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """The layers of a state dict.

    Args:
        layers: the compressible layers, in file order.
        skipped: every other tensor, in file order.
        unsupported: why weights in an unsupported form are not compressed, and how to save them in a plain form.
        notes: sentences for the report.
    """

    layers: tuple[LayerSpec, ...]
    skipped: tuple[Skipped, ...]
    unsupported: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def discover_layers(checkpoint: Checkpoint, selection: Selection, model: UserModel | None) -> Discovery:
    """Find the compressible layers of a checkpoint; no tensor is read.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers are compressed.
        model: the user's model, to recognise layers by their classes; one given as text is imported and run.

    Raises:
        SelectionError: a glob that matches nothing, or a forced kind that a tensor cannot have.
        ModelError: the model cannot be built, or does not fit the checkpoint.
    """
    classes: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    if model is not None:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
        matched = model_classes.match_classes(model, shapes)
        classes, notes = matched.classes, matched.notes
    hints = Hints(
        recorded_classes=checkpoint.classes,
        model_classes=classes,
        config=checkpoint.config,
        ties=checkpoint.metadata,
    )
    return dataclasses.replace(layers_of(checkpoint.tensors, selection, hints), notes=notes)


def layers_of(
    tensors: Mapping[str, TensorInfo],
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    hints: Hints = Hints(),  # noqa: B008 (frozen)
) -> Discovery:
    """Find the compressible layers of a state dict.

    The kind of a layer comes from the most reliable source that knows it: the user's selection, then those of
    `LayerClassifier`.

    Args:
        tensors: every tensor of the state dict, in file order.
        selection: which of them are compressed.
        hints: what is known beside names and shapes.

    Returns:
        Layers and skipped tensors; every tensor that is no alias is in a layer or skipped.

    Raises:
        SelectionError: a glob that matches nothing, or a forced kind that a tensor cannot have.

    Example:
        >>> info = TensorInfo(name="fc.weight", shape=(128, 64), dtype=FLOAT32)
        >>> layers_of({"fc.weight": info}).layers[0].kind
        'linear'
    """
    forced = forced_kinds(tensors, selection)
    unsupported = unsupported_weights(tensors)
    classifier = LayerClassifier(tensors, hints, unsupported)
    reasons: dict[str, str] = {}
    groups: dict[LayerKey, LayerParts] = {}
    for name, info in tensors.items():
        if info.alias_of is not None:
            continue
        names = (name, *classifier.aliases(name))
        key, part = layer_key(name, as_matrix=forced.get(name) in ("linear", "conv1d"))
        if name in forced:
            classification = _forced(info, key, forced[name], unwanted(names, selection))
        else:
            reason = (
                next((unsupported[alias] for alias in names if alias in unsupported), "")
                or _not_a_matrix(info)
                or classifier.embedding(name)
                or unwanted(names, selection)
            )
            classification = Classification(reason=reason) if reason else classifier.classify(name, key)
        if classification.reason:
            reasons[name] = classification.reason
            continue
        parts = groups.setdefault(key, LayerParts(kind=classification.kind, kind_from=classification.kind_from))
        parts.members[part] = matrix_member(info, names[1:], transposed=classification.kind == "conv1d")
    layers = []
    for key, parts in groups.items():
        layer, too_small = build_layer(key, parts, selection)
        reasons.update(too_small)
        if layer is not None:
            layers.append(layer)
    return Discovery(
        layers=tuple(layers),
        skipped=tuple(
            Skipped(name=name, shape=info.shape, reason=reasons[name])
            for name, info in tensors.items()
            if name in reasons
        ),
        unsupported=tuple(dict.fromkeys(reason for name, reason in unsupported.items() if reasons.get(name) == reason)),
    )


def _forced(info: TensorInfo, key: LayerKey, kind: ForcedKind, not_selected: str) -> Classification:
    """The classification that the user asked for."""
    return Classification(
        kind="conv1d" if kind == "conv1d" else key.kind,
        kind_from="as asked",
        reason=_not_a_matrix(info) or ("an embedding" if kind == "embedding" else "") or not_selected,
    )


def _not_a_matrix(info: TensorInfo) -> str:
    """Why a tensor cannot be decomposed at all; empty if it can."""
    if len(info.shape) != 2:
        known = {0: "a scalar", 1: "1-D: a bias, a norm or a statistic"}
        return known.get(len(info.shape), f"{len(info.shape)}-D: not an LSTM or Linear weight")
    if info.dtype not in COMPRESSIBLE_DTYPES:
        return f"{info.dtype}: only float16, bfloat16, float32 and float64 weights are compressed"
    return "empty" if 0 in info.shape else ""

"""Survey a checkpoint: find its layers, and compute the error curves of every matrix, before a target is applied."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.errors import CheckpointError, DecompositionError, SitesError
from mpocompress.layers.discovery import Discovery, discover_layers
from mpocompress.layers.selection import Selection
from mpocompress.layers.specs import LayerSpec, MatrixSpec, Skipped
from mpocompress.mpo.memory import keeping_memory
from mpocompress.mpo.sites import SitesChoice, candidates
from mpocompress.mpo.tt_svd import FiniteMatrix, finite_matrix
from mpocompress.parallel import Progress, run_jobs
from mpocompress.planning.curves import MatrixCurves, competing_shapes, error_curves, unknown_curve
from mpocompress.planning.shortlist import shortlist
from mpocompress.planning.targets import TruncationTarget
from mpocompress.reports.compression import Source
from mpocompress.user.model import UserModel

NOT_FINITE = "holds NaN or Inf, or entries too large to square"
LEFT_BEHIND = "small, and the weight that it would be joined with holds NaN or Inf"
FLOAT32_BYTES = 4
SURVEY_COPIES = 3
"""Copies in float32 of the largest matrix of a layer that exist at once while several forms are surveyed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSurvey:
    """The layers of a checkpoint, the error curves of their matrices, and what the report says of the rest.

    Args:
        source: the checkpoint.
        layers: the layers that can be decomposed.
        curves: the error curves of every matrix of every form, by name.
        skipped: the other tensors.
        parameters: parameters of the whole model; tied tensors count once.
        size_bytes: bytes of all tensors; tied tensors count once.
        aliases: tied tensors: name -> the first name of the same elements.
        notes: what the reader of the checkpoint left out or chose.
        unmet: what was requested and cannot be done.
    """

    source: Source
    layers: tuple[LayerSpec, ...]
    curves: Mapping[str, MatrixCurves]
    skipped: tuple[Skipped, ...]
    parameters: int
    size_bytes: int
    aliases: Mapping[str, str]
    notes: tuple[str, ...]
    unmet: tuple[str, ...]

    @property
    def other_parameters(self) -> int:
        """Parameters outside the layers."""
        return self.parameters - sum(layer.dense_parameters for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSurvey:
    """One layer, and the error curves of its matrices.

    Args:
        layer: the layer without tensors that hold NaN or Inf; None if nothing is left of it.
        curves: the error curves of its matrices, by name.
        skipped: the tensors that were taken out.
    """

    layer: LayerSpec | None
    curves: Mapping[str, MatrixCurves]
    skipped: tuple[Skipped, ...]


def find_layers(checkpoint: Checkpoint, selection: Selection, model: UserModel | None = None) -> Discovery:
    """Find the layers of a checkpoint that can be compressed.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers, and in what form.
        model: the user's model, to recognise layers by their classes.

    Returns:
        At least one layer, and the tensors that were skipped.

    Raises:
        CheckpointError: nothing can be compressed, or the checkpoint is compressed.
        SelectionError: a glob that matches nothing.
        ModelError: the model cannot be built, or does not fit the checkpoint.
    """
    if checkpoint.document is not None:
        raise CheckpointError(
            where=checkpoint.path.name,
            found="the checkpoint is already compressed",
            why="compressing cores again would add a second error",
            action="Compress the original, or expand this file first.",
        )
    if not checkpoint.tensors and _has_unnamed(checkpoint.extras):
        raise CheckpointError(
            where=checkpoint.path.name,
            found="a state dict with keys that are not strings",
            why="layers are recognised by the names of their tensors",
            action="Save the tensors with names, as model.state_dict() does.",
        )
    discovery = discover_layers(checkpoint, selection, model)
    if not discovery.layers:
        raise CheckpointError(
            where=checkpoint.path.name,
            found=f"{len(checkpoint.tensors)} tensors, none of them a weight that can be compressed",
            why=_common_reasons(discovery),
            action="Save plain weights, as described, and compress that file."
            if discovery.unsupported
            else "Lower the smallest side, select other layers, or pass a checkpoint with LSTM or Linear weights.",
        )
    return discovery


def _has_unnamed(value: object) -> bool:
    """Return whether a nested value holds a tensor under a key that is not a string."""
    if isinstance(value, list):
        return any(map(_has_unnamed, value))
    entries = value.items() if isinstance(value, Mapping) else ()
    return any(
        _has_unnamed(inner) or (isinstance(inner, Tensor) and not isinstance(key, str)) for key, inner in entries
    )


def _common_reasons(discovery: Discovery) -> str:
    """Return the most common reasons for which tensors were skipped."""
    reasons = Counter(tensor.reason for tensor in discovery.skipped).most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons) or "the state dict is empty"


def survey_checkpoint(
    checkpoint: Checkpoint,
    *,
    selection: Selection,
    sites: SitesChoice,
    targets: Sequence[TruncationTarget],
    jobs: int,
    model: UserModel | None = None,
    progress: Progress | None = None,
) -> CheckpointSurvey:
    """Find the layers of a checkpoint, and compute the error curves of their matrices.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers, and in what form.
        sites: the site shape choice for every matrix.
        targets: the targets that the curves are for.
        jobs: layers processed at the same time.
        model: the user's model, to recognise layers by their classes.
        progress: called with the progress of the work.

    Raises:
        CheckpointError: nothing can be compressed, or the checkpoint is compressed.
        SelectionError: a glob that matches nothing.
        ModelError: the model cannot be built, or does not fit the checkpoint.
    """
    discovery = find_layers(checkpoint, selection, model)
    survey = partial(
        survey_layer, checkpoint=checkpoint, selection=selection, sites=sites, targets=targets, predict=True
    )
    size = partial(working_bytes, targets=targets)
    with keeping_memory():
        layers = run_jobs(survey, discovery.layers, jobs=jobs, step="surveying", progress=progress, size_bytes=size)
    return join_surveys(checkpoint, discovery, layers)


def join_surveys(checkpoint: Checkpoint, discovery: Discovery, layers: Sequence[LayerSurvey]) -> CheckpointSurvey:
    """Join the surveys of all layers of a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        discovery: its layers and skipped tensors.
        layers: one survey per layer.
    """
    broken = [tensor for layer in layers for tensor in layer.skipped]
    names = ", ".join(tensor.name for tensor in broken[:3]) + (", ..." if len(broken) > 3 else "")
    return CheckpointSurvey(
        source=Source(
            file=checkpoint.path.name,
            sha256=checkpoint.sha256(),
            container=checkpoint.container,
            key=checkpoint.key,
            file_size_bytes=checkpoint.size_bytes,
        ),
        layers=tuple(layer.layer for layer in layers if layer.layer is not None),
        curves={name: curves for layer in layers for name, curves in layer.curves.items()},
        skipped=_in_file_order(checkpoint.tensors, (*discovery.skipped, *broken)),
        parameters=sum(info.numel for info in checkpoint.own_tensors),
        size_bytes=sum(info.size_bytes for info in checkpoint.own_tensors),
        aliases=checkpoint.aliases,
        notes=(*checkpoint.notes, *discovery.notes),
        unmet=(f"Not compressed because of NaN or Inf: {names} ({len(broken)} in all).",) if broken else (),
    )


def survey_layer(
    layer: LayerSpec,
    *,
    checkpoint: Checkpoint,
    selection: Selection,
    sites: SitesChoice,
    targets: Sequence[TruncationTarget],
    predict: bool,
) -> LayerSurvey:
    """Compute the error curves of the matrices of one layer, as far as the targets need them.

    Tensors that hold NaN or Inf are taken out first; what is left of the layer is surveyed tensor by tensor.

    Args:
        layer: the layer.
        checkpoint: the checkpoint it is read from.
        selection: how small a weight may be.
        sites: the site shape choice.
        targets: the targets that the curves are for.
        predict: whether errors must be known; if not, a matrix with one possible shape gets an unknown curve.
    """
    skipped: tuple[Skipped, ...] = ()
    norms = _squared_norms(layer, checkpoint)
    if None in norms.values():
        sound, skipped = _without_broken(layer, checkpoint, selection.min_side)
        if sound is None:
            return LayerSurvey(layer=None, curves={}, skipped=skipped)
        layer, norms = sound, _squared_norms(sound, checkpoint)
    curves = {}
    for matrix in (matrix for form in layer.forms for matrix in form):
        caps = _caps(layer, matrix, targets) if len(layer.forms) == 1 else None
        finite = FiniteMatrix(entries=read_matrix(matrix, checkpoint), squared_norm=norms[matrix.name] or 0.0)
        curves[matrix.name] = _matrix_curves(matrix, finite, sites, largest_bond(targets), caps, predict)
    return LayerSurvey(layer=layer, curves=curves, skipped=skipped)


def _squared_norms(layer: LayerSpec, checkpoint: Checkpoint) -> dict[str, float | None]:
    """Return the squared norm of every matrix of every form, by name; None if it is not finite."""
    return {matrix.name: _squared_norm(read_matrix(matrix, checkpoint)) for form in layer.forms for matrix in form}


def _squared_norm(weight: Tensor) -> float | None:
    try:
        return finite_matrix(weight).squared_norm
    except DecompositionError:
        return None


def working_bytes(layer: LayerSpec, targets: Sequence[TruncationTarget]) -> int:
    """Estimate the memory that the work on one layer needs at most.

    Args:
        layer: the layer.
        targets: the targets.

    Returns:
        Bytes: one copy of its largest matrix and samples of it, or three copies if several forms are compared or
        errors are needed for every bond.
    """
    size_bytes = FLOAT32_BYTES * max(matrix.dense_parameters for form in layer.forms for matrix in form)
    if len(layer.forms) == 1 and all(target.largest_bond is not None for target in targets):
        return size_bytes * 5 // 4
    return size_bytes * SURVEY_COPIES


def largest_bond(targets: Sequence[TruncationTarget]) -> int | None:
    """Return the largest bond whose error is needed: twice the largest cap, as forms are compared at equal parameters.

    Args:
        targets: the targets.

    Returns:
        The bond; None if a target does not cap bonds, so that all are needed.
    """
    caps = [target.largest_bond for target in targets]
    known = [cap for cap in caps if cap is not None]
    # A joint matrix with as many parameters as two separate ones has up to twice their bond.
    return 2 * max(known, default=1) if len(known) == len(caps) else None


def _caps(layer: LayerSpec, matrix: MatrixSpec, targets: Sequence[TruncationTarget]) -> tuple[int, ...] | None:
    """Return the bond caps of a matrix under all targets; None if a target does not cap bonds."""
    if any(target.largest_bond is None for target in targets):
        return None
    names = [(layer.name, matrix.name, member.name) for member in matrix.members]
    caps = {target.bond_cap(*known) for target in targets for known in names}
    return tuple(sorted(cap for cap in caps if cap is not None))


def _matrix_curves(
    matrix: MatrixSpec,
    finite: FiniteMatrix,
    sites: SitesChoice,
    max_bond: int | None,
    caps: Sequence[int] | None,
    predict: bool,
) -> MatrixCurves:
    """Compute the error curves of one matrix, of the site shapes that are in question."""
    norm = finite.squared_norm
    try:
        shapes = candidates(*matrix.shape, sites)
    except SitesError as error:
        return MatrixCurves(curves=(), squared_norm=norm, problem=f"{error.found}: {error.why}")
    if len(shapes) > 1:
        finite = finite.widened()
    curves = partial(error_curves, finite, max_bond=max_bond, member_columns=matrix.member_columns)
    if caps is None:
        return MatrixCurves(curves=curves(shapes), squared_norm=norm)
    listed = {shape for cap in caps for shape in shortlist(finite.entries, competing_shapes(shapes, cap), cap)}
    shapes = tuple(shape for shape in shapes if shape in listed)
    if predict or len(shapes) > 1:
        return MatrixCurves(curves=curves(shapes), squared_norm=norm)
    return MatrixCurves(curves=tuple(map(unknown_curve, shapes)), squared_norm=norm)


def _without_broken(
    layer: LayerSpec, checkpoint: Checkpoint, min_side: int
) -> tuple[LayerSpec | None, tuple[Skipped, ...]]:
    """Return a layer without the tensors that hold NaN or Inf, every other tensor as a matrix; and those taken out."""
    members = [member for matrix in layer.forms[0] for member in matrix.members]
    broken = {member.name for member in members if _squared_norm(checkpoint.tensor(member.name)) is None}
    sound = [
        MatrixSpec(name=member.name, members=(member,), kind_from=layer.forms[0][0].kind_from)
        for member in members
        if member.name not in broken and min(member.shape) >= min_side
    ]
    names = {matrix.name for matrix in sound}
    skipped = tuple(
        Skipped(
            name=member.name,
            shape=checkpoint.tensors[member.name].shape,
            reason=NOT_FINITE if member.name in broken else LEFT_BEHIND,
        )
        for member in members
        if member.name not in names
    )
    return (dataclasses.replace(layer, forms=(tuple(sound),)) if sound else None), skipped


def read_matrix(matrix: MatrixSpec, checkpoint: Checkpoint) -> Tensor:
    """Read one matrix of a checkpoint, with its members side by side.

    Args:
        matrix: its tensors.
        checkpoint: the checkpoint.

    Returns:
        Shape (rows, columns); backed by the file if there is one member.
    """
    tensors = [(checkpoint.tensor(member.name), member.transposed) for member in matrix.members]
    parts = [tensor.T if transposed else tensor for tensor, transposed in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _in_file_order(tensors: Mapping[str, TensorInfo], skipped: tuple[Skipped, ...]) -> tuple[Skipped, ...]:
    by_name = {tensor.name: tensor for tensor in skipped}
    return tuple(by_name[name] for name in tensors if name in by_name)

"""A checkpoint surveyed: its layers found, every matrix looked at, before any target is applied."""

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
from mpocompress.jobs import Progress, run_jobs
from mpocompress.layers.discovery import Discovery, discover_layers
from mpocompress.layers.selection import Selection
from mpocompress.layers.specs import LayerSpec, MatrixSpec, Skipped
from mpocompress.mpo.memory import keeping_memory
from mpocompress.mpo.sites import SitesChoice, candidates
from mpocompress.mpo.tt_svd import computable
from mpocompress.planning.curves import competing, survey, unknown
from mpocompress.planning.plan import Survey
from mpocompress.planning.shortlist import shortlist
from mpocompress.planning.target import Truncation
from mpocompress.reports.compression import Source
from mpocompress.user.model import UserModel

NOT_FINITE = "holds NaN or Inf, or entries too large to square"
FLOAT32_BYTES = 4
LEFT_BEHIND = "small, and the weight it would be joined with holds NaN or Inf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A checkpoint after the survey, before a target.

    Args:
        source: the file.
        layers: the layers that can be decomposed.
        surveys: what is known of every matrix of every form.
        skipped: the other tensors.
        tensors: all tensors.
        notes: what the reader left out or chose.
        unmet: what was asked for and cannot be done.
    """

    source: Source
    layers: tuple[LayerSpec, ...]
    surveys: Mapping[str, Survey]
    skipped: tuple[Skipped, ...]
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...]
    unmet: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; tied tensors count once."""
        return sum(info.numel for info in self.tensors.values() if info.alias_of is None)

    @property
    def other_parameters(self) -> int:
        """Parameters outside the layers."""
        return self.parameters - sum(layer.dense_parameters for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerSurvey:
    """One layer after the survey.

    Args:
        layer: the layer without the tensors that hold NaN or Inf; None when nothing is left of it.
        surveys: what is known of its matrices, by name.
        skipped: the tensors that were taken out.
        matrix: its matrix in the dtype it is computed in, where it is the only one: to be decomposed at once.
    """

    layer: LayerSpec | None
    surveys: Mapping[str, Survey]
    skipped: tuple[Skipped, ...]
    matrix: Tensor | None = None

    def without_weights(self) -> LayerSurvey:
        """The same, with no matrix."""
        return dataclasses.replace(self, matrix=None)


def find_layers(checkpoint: Checkpoint, selection: Selection, model: UserModel | None = None) -> Discovery:
    """The layers of a checkpoint that can be compressed.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers, and in what form.
        model: the user's own model, to tell layers by their classes.

    Returns:
        The layers, one at least, and the tensors that were skipped.

    Raises:
        CheckpointError: nothing to compress, or compressed already.
        SelectionError: a pattern that matches nothing.
        ModelError: the model cannot be built, or is another one.
    """
    if checkpoint.document is not None:
        raise CheckpointError(
            where=checkpoint.path.name,
            found="a checkpoint that is compressed already",
            why="compressing cores again would lose twice",
            action="Give the original, or expand this one first.",
        )
    if not checkpoint.tensors and _has_unnamed(checkpoint.extras):
        raise CheckpointError(
            where=checkpoint.path.name,
            found="a state dict whose keys are no text",
            why="layers are told by the names of their tensors",
            action="Save the tensors under names, as model.state_dict() has them.",
        )
    found = discover_layers(checkpoint, selection, model)
    if not found.layers:
        raise CheckpointError(
            where=checkpoint.path.name,
            found=f"{len(checkpoint.tensors)} tensors, none of them a weight to compress",
            why=_commonest(found),
            action="Make the weights plain, as it says there, and come back with that file."
            if found.unsupported
            else "Allow smaller sides or other layers, or give a checkpoint with LSTM or Linear weights.",
        )
    return found


def _has_unnamed(value: object) -> bool:
    """Whether a tensor goes by a key that is no text, however deep inside."""
    if isinstance(value, list):
        return any(map(_has_unnamed, value))
    entries = value.items() if isinstance(value, Mapping) else ()
    return any(
        _has_unnamed(inner) or (isinstance(inner, Tensor) and not isinstance(key, str)) for key, inner in entries
    )


def survey_checkpoint(
    checkpoint: Checkpoint,
    *,
    selection: Selection,
    sites: SitesChoice,
    truncations: Sequence[Truncation],
    jobs: int,
    model: UserModel | None = None,
    progress: Progress | None = None,
) -> Surveyed:
    """Find the layers of a checkpoint and survey their matrices.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers, and in what form.
        sites: a site shape choice for every matrix.
        truncations: the targets that are of interest.
        jobs: matrices worked on at the same time.
        model: the user's own model, to tell layers by their classes.
        progress: told how far the work is.

    Returns:
        The survey.

    Raises:
        CheckpointError: nothing to compress, or compressed already.
        SelectionError: a pattern that matches nothing.
        ModelError: the model cannot be built, or is another one.
    """
    found = find_layers(checkpoint, selection, model)

    def look(layer: LayerSpec) -> LayerSurvey:
        return survey_layer(
            layer, checkpoint=checkpoint, selection=selection, sites=sites, truncations=truncations, predict=True
        ).without_weights()

    size = partial(working_bytes, truncations=truncations)
    with keeping_memory():
        looks = run_jobs(look, found.layers, jobs=jobs, step="surveying", progress=progress, size_bytes=size)
    return put_together(checkpoint, found, looks)


def put_together(checkpoint: Checkpoint, found: Discovery, looks: Sequence[LayerSurvey]) -> Surveyed:
    """The survey of a checkpoint from those of its layers.

    Args:
        checkpoint: an open checkpoint.
        found: its layers.
        looks: one for every layer.

    Returns:
        The survey.
    """
    broken = [one for look in looks for one in look.skipped]
    names = ", ".join(one.name for one in broken[:3]) + (", ..." if len(broken) > 3 else "")
    return Surveyed(
        source=Source(
            file=checkpoint.path.name,
            sha256=checkpoint.sha256(),
            container=checkpoint.container,
            key=checkpoint.key,
            file_size_bytes=checkpoint.size_bytes,
        ),
        layers=tuple(look.layer for look in looks if look.layer is not None),
        surveys={name: one for look in looks for name, one in look.surveys.items()},
        skipped=_in_order(checkpoint.tensors, (*found.skipped, *broken)),
        tensors=checkpoint.tensors,
        notes=(*checkpoint.notes, *found.notes),
        unmet=(f"Left alone because of NaN or Inf: {names} ({len(broken)} in all).",) if broken else (),
    )


def survey_layer(
    layer: LayerSpec,
    *,
    checkpoint: Checkpoint,
    selection: Selection,
    sites: SitesChoice,
    truncations: Sequence[Truncation],
    predict: bool,
) -> LayerSurvey:
    """Survey the matrices of one layer, no further than the targets need.

    Args:
        layer: the layer.
        checkpoint: where to read it.
        selection: how small a weight may be.
        sites: a site shape choice.
        truncations: the targets that are of interest.
        predict: whether errors must be known; without, a matrix with nothing to choose is not surveyed.

    Returns:
        The survey.
    """
    surveys: dict[str, Survey] = {}
    held: Tensor | None = None
    for form in layer.forms:
        for matrix in form:
            caps = _caps(layer, matrix, truncations) if len(layer.forms) == 1 else None
            known, held = _survey(matrix, checkpoint, sites, max_bond_of_interest(truncations), caps, predict)
            surveys |= {matrix.name: known} if known is not None else {}
    forms = tuple(form for form in layer.forms if all(matrix.name in surveys for matrix in form))
    if forms:
        alone = len(layer.forms) == 1 and len(layer.forms[0]) == 1
        return LayerSurvey(
            layer=dataclasses.replace(layer, forms=forms), surveys=surveys, skipped=(), matrix=held if alone else None
        )
    sound, lost = _sound(layer, checkpoint, selection.min_side)
    if sound is None:
        return LayerSurvey(layer=None, surveys={}, skipped=lost)
    again = survey_layer(
        sound, checkpoint=checkpoint, selection=selection, sites=sites, truncations=truncations, predict=predict
    )
    return dataclasses.replace(again, skipped=lost)


def working_bytes(layer: LayerSpec, truncations: Sequence[Truncation]) -> int:
    """Memory that the work on one layer takes at most, roughly.

    Args:
        layer: the layer.
        truncations: the targets.

    Returns:
        A number of bytes: one copy of its largest matrix and samples of that, or three copies where it has to be seen
        in several ways.
    """
    largest = max(matrix.dense_parameters for form in layer.forms for matrix in form)
    once = len(layer.forms) == 1 and all(one.kind == "bond" for one in truncations)
    return largest * FLOAT32_BYTES * 5 // 4 if once else largest * FLOAT32_BYTES * 3


def max_bond_of_interest(truncations: Sequence[Truncation]) -> int | None:
    """How far spectra must be known: twice the largest cap, since forms are compared at equal parameters.

    Args:
        truncations: the targets.

    Returns:
        The largest bond of interest; None for all.
    """
    if any(one.kind != "bond" for one in truncations):
        return None
    caps = [bond for one in truncations for bond in (one.max_bond, *one.bond_by_layer.values()) if bond is not None]
    return 2 * max(caps, default=1)


def _caps(layer: LayerSpec, matrix: MatrixSpec, truncations: Sequence[Truncation]) -> tuple[int, ...] | None:
    """The bond caps asked for a matrix; None where targets ask for other things too."""
    if any(one.kind != "bond" for one in truncations):
        return None
    names = [(layer.name, matrix.name, member.name) for member in matrix.members]
    caps = {one.bond_cap(*known) for one in truncations for known in names}
    return tuple(sorted(cap for cap in caps if cap is not None))


def _survey(
    matrix: MatrixSpec,
    checkpoint: Checkpoint,
    sites: SitesChoice,
    max_bond: int | None,
    caps: Sequence[int] | None,
    predict: bool,
) -> tuple[Survey | None, Tensor | None]:
    """What is known of one matrix, and itself; None when it cannot be decomposed."""
    try:
        weight, norm = computable(read_matrix(matrix, checkpoint))
        shapes = candidates(*matrix.shape, sites)
    except DecompositionError:
        return None, None
    except SitesError as error:
        return Survey(curves=(), squared_norm=norm, problem=f"{error.found}: {error.why}"), None
    columns = [member.shape[1] for member in matrix.members]
    look = partial(survey, weight, max_bond=max_bond, member_columns=columns, norm=norm)
    if caps is None:
        return Survey(curves=look(shapes), squared_norm=norm), weight
    chosen = {shape for cap in caps for shape in shortlist(weight, competing(shapes, cap), cap)}
    shapes = tuple(shape for shape in shapes if shape in chosen)
    curves = look(shapes) if predict or len(shapes) > 1 else tuple(unknown(shape) for shape in shapes)
    return Survey(curves=curves, squared_norm=norm), weight


def _sound(layer: LayerSpec, checkpoint: Checkpoint, min_side: int) -> tuple[LayerSpec | None, tuple[Skipped, ...]]:
    """A layer without the tensors that hold NaN or Inf, every one left by itself."""
    members = [member for matrix in layer.forms[0] for member in matrix.members]
    broken = {member.name for member in members if not _is_finite(checkpoint.tensor(member.name))}
    alone = [
        MatrixSpec(name=member.name, members=(member,), kind_from=layer.forms[0][0].kind_from)
        for member in members
        if member.name not in broken and min(member.shape) >= min_side
    ]
    kept = {matrix.name for matrix in alone}
    lost = tuple(
        Skipped(
            name=member.name,
            shape=checkpoint.tensors[member.name].shape,
            reason=NOT_FINITE if member.name in broken else LEFT_BEHIND,
        )
        for member in members
        if member.name not in kept
    )
    return (dataclasses.replace(layer, forms=(tuple(alone),)) if alone else None), lost


def _is_finite(weight: Tensor) -> bool:
    try:
        computable(weight)
    except DecompositionError:
        return False
    return True


def read_matrix(matrix: MatrixSpec, checkpoint: Checkpoint) -> Tensor:
    """One matrix of a checkpoint, its members side by side.

    Args:
        matrix: its tensors.
        checkpoint: where to read them.

    Returns:
        Shape (rows, columns); backed by the file where there is one member.
    """
    tensors = [(checkpoint.tensor(member.name), member.transposed) for member in matrix.members]
    parts = [tensor.T if transposed else tensor for tensor, transposed in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _in_order(tensors: Mapping[str, TensorInfo], skipped: tuple[Skipped, ...]) -> tuple[Skipped, ...]:
    by_name = {one.name: one for one in skipped}
    return tuple(by_name[name] for name in tensors if name in by_name)


def _commonest(found: Discovery) -> str:
    """The reasons for which most tensors were skipped."""
    reasons = Counter(one.reason for one in found.skipped).most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons) or "the state dict is empty"

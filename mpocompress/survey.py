"""A checkpoint surveyed: its layers found, every matrix looked at, before any target is applied."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mpocompress.checkpoint import Checkpoint, TensorInfo
from mpocompress.decomposition import computable, survey
from mpocompress.discovery import Discovery, discover_in
from mpocompress.errors import CheckpointError, DecompositionError, SitesError
from mpocompress.jobs import Progress, run_jobs
from mpocompress.layers import LayerSpec, MatrixSpec
from mpocompress.planning import Survey
from mpocompress.report import Skipped, Source
from mpocompress.selection import Selection
from mpocompress.sites import SitesChoice, candidates
from mpocompress.user_model import UserModel

NOT_FINITE = "holds NaN or Inf, or entries too large to square"
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


def survey_checkpoint(
    checkpoint: Checkpoint,
    *,
    selection: Selection,
    sites: SitesChoice,
    max_bond: int | None,
    jobs: int,
    model: UserModel | None = None,
    progress: Progress | None = None,
) -> Surveyed:
    """Find the layers of a checkpoint and survey their matrices.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers, and in what form.
        sites: a site shape choice for every matrix.
        max_bond: the largest bond of interest; None for all.
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
    if checkpoint.document is not None:
        raise CheckpointError(
            where=checkpoint.path.name,
            found="a checkpoint that is compressed already",
            why="compressing cores again would lose twice",
            action="Give the original, or expand this one first.",
        )
    found = discover_in(checkpoint, selection, model)
    if not found.layers:
        raise CheckpointError(
            where=checkpoint.path.name,
            found=f"{len(checkpoint.tensors)} tensors, none of them a weight to compress",
            why=_commonest(found),
            action="Make the weights plain, as it says there, and come back with that file."
            if found.obstacles
            else "Allow smaller sides or other layers, or give a checkpoint with LSTM or Linear weights.",
        )
    matrices = [matrix for layer in found.layers for form in layer.forms for matrix in form]
    look = partial(_survey, checkpoint=checkpoint, sites=sites, max_bond=max_bond)
    look_at = partial(run_jobs, look, jobs=jobs, step="surveying", progress=progress)
    surveyed = look_at(matrices)
    surveys = {matrix.name: one for matrix, one in zip(matrices, surveyed, strict=True) if one is not None}
    layers: list[LayerSpec] = []
    broken: list[Skipped] = []
    for layer in found.layers:
        sound, lost = _sound(layer, surveys, look_at, checkpoint, selection.min_side)
        layers += [sound] if sound is not None else []
        broken += lost
    names = ", ".join(one.name for one in broken[:3]) + (", ..." if len(broken) > 3 else "")
    unmet = (f"Left alone because of NaN or Inf: {names} ({len(broken)} in all).",) if broken else ()
    return Surveyed(
        source=Source(
            file=checkpoint.path.name,
            sha256=checkpoint.sha256(),
            container=checkpoint.container,
            key=checkpoint.key,
            file_size_bytes=checkpoint.size_bytes,
        ),
        layers=tuple(layers),
        surveys=surveys,
        skipped=_in_order(checkpoint.tensors, (*found.skipped, *broken)),
        tensors=checkpoint.tensors,
        notes=(*checkpoint.notes, *found.notes),
        unmet=unmet,
    )


def _survey(matrix: MatrixSpec, *, checkpoint: Checkpoint, sites: SitesChoice, max_bond: int | None) -> Survey | None:
    """What is known of one matrix; None when it cannot be decomposed."""
    try:
        weight, norm = computable(read_matrix(matrix, checkpoint))
        shapes = candidates(*matrix.shape, sites)
    except DecompositionError:
        return None
    except SitesError as error:
        return Survey(curves=(), squared_norm=norm, problem=f"{error.found}: {error.why}")
    columns = [member.shape[1] for member in matrix.members]
    return Survey(curves=survey(weight, shapes, max_bond=max_bond, member_columns=columns), squared_norm=norm)


def _sound(
    layer: LayerSpec,
    surveys: dict[str, Survey],
    look_at: Callable[[list[MatrixSpec]], list[Survey | None]],
    checkpoint: Checkpoint,
    min_side: int,
) -> tuple[LayerSpec | None, list[Skipped]]:
    """A layer without the tensors that hold NaN or Inf; what of it was only known joined is surveyed by itself."""
    forms = tuple(form for form in layer.forms if all(matrix.name in surveys for matrix in form))
    if forms:
        return dataclasses.replace(layer, forms=forms), []
    members = [member for matrix in layer.forms[0] for member in matrix.members]
    broken = {member.name for member in members if not _is_finite(checkpoint.tensor(member.name))}
    alone = [
        MatrixSpec(name=member.name, members=(member,), kind_from=layer.forms[0][0].kind_from)
        for member in members
        if member.name not in broken and min(member.shape) >= min_side
    ]
    surveys.update((matrix.name, one) for matrix, one in zip(alone, look_at(alone), strict=True) if one is not None)
    kept = {matrix.name for matrix in alone}
    lost = [
        Skipped(
            name=member.name,
            shape=checkpoint.tensors[member.name].shape,
            reason=NOT_FINITE if member.name in broken else LEFT_BEHIND,
        )
        for member in members
        if member.name not in kept
    ]
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

"""A checkpoint surveyed: its layers found, every matrix looked at, before any target is applied."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mpocompress.checkpoint import Checkpoint, TensorInfo
from mpocompress.decomposition import survey
from mpocompress.discovery import Discovery, Selection, Skipped, discover
from mpocompress.errors import CheckpointError, SitesError
from mpocompress.jobs import Progress, run_jobs
from mpocompress.layers import LayerSpec, MatrixSpec
from mpocompress.planning import Survey
from mpocompress.report import Source
from mpocompress.sites import SitesChoice, candidates
from mpocompress.svd import squared_norm


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
    progress: Progress | None = None,
) -> Surveyed:
    """Find the layers of a checkpoint and survey their matrices.

    Args:
        checkpoint: an open checkpoint.
        selection: which layers, and in what form.
        sites: a site shape choice for every matrix.
        max_bond: the largest bond of interest; None for all.
        jobs: matrices worked on at the same time.
        progress: told how far the work is.

    Returns:
        The survey.

    Raises:
        CheckpointError: nothing to compress, or compressed already.
        SelectionError: a pattern that matches nothing.
    """
    if checkpoint.document is not None:
        raise CheckpointError(
            where=checkpoint.path.name,
            found="a checkpoint that is compressed already",
            why="compressing cores again would lose twice",
            action="Give the original, or expand this one first.",
        )
    found = discover(checkpoint.tensors, selection)
    if not found.layers:
        raise CheckpointError(
            where=checkpoint.path.name,
            found=f"{len(checkpoint.tensors)} tensors, none of them a weight to compress",
            why=_commonest(found),
            action="Allow smaller sides or other layers, or give a checkpoint with LSTM or Linear weights.",
        )
    matrices = [matrix for layer in found.layers for form in layer.forms for matrix in form]
    look = partial(_survey, checkpoint=checkpoint, sites=sites, max_bond=max_bond)
    surveyed = run_jobs(look, matrices, jobs=jobs, step="surveying", progress=progress)
    surveys = {matrix.name: one for matrix, one in zip(matrices, surveyed, strict=True) if one is not None}
    layers, broken = [], []
    for layer in found.layers:
        sound, lost = _sound(layer, surveys)
        layers += [sound] if sound is not None else []
        broken += lost
    unmet: tuple[str, ...] = ()
    if broken:
        unmet = (f"{len(broken)} weights hold NaN or Inf, or belong to a layer that does, and were left alone.",)
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
        notes=checkpoint.notes,
        unmet=unmet,
    )


def _survey(matrix: MatrixSpec, *, checkpoint: Checkpoint, sites: SitesChoice, max_bond: int | None) -> Survey | None:
    """What is known of one matrix; None when it has NaN or Inf."""
    weight = read_matrix(matrix, checkpoint)
    norm = squared_norm(weight.to(torch.promote_types(weight.dtype, torch.float32)))
    if not math.isfinite(norm):
        return None
    try:
        shapes = candidates(*matrix.shape, sites)
    except SitesError as error:
        return Survey(curves=(), squared_norm=norm, problem=f"{error.found}: {error.why}")
    return Survey(curves=survey(weight, shapes, max_bond=max_bond), squared_norm=norm)


def _sound(layer: LayerSpec, surveys: Mapping[str, Survey]) -> tuple[LayerSpec | None, list[Skipped]]:
    """A layer without the matrices that hold NaN or Inf."""
    forms = [form for form in layer.forms if all(matrix.name in surveys for matrix in form)]
    if forms:
        return dataclasses.replace(layer, forms=tuple(forms)), []
    form = layer.forms[-1]
    sound = tuple(matrix for matrix in form if matrix.name in surveys)
    lost = [
        Skipped(name=member.name, shape=member.shape, reason="holds NaN or Inf, or belongs to a matrix that does")
        for matrix in form
        if matrix.name not in surveys
        for member in matrix.members
    ]
    return (dataclasses.replace(layer, forms=(sound,)) if sound else None), lost


def read_matrix(matrix: MatrixSpec, checkpoint: Checkpoint) -> Tensor:
    """One matrix of a checkpoint, its members side by side.

    Args:
        matrix: its tensors.
        checkpoint: where to read them.

    Returns:
        Shape (rows, columns); backed by the file where there is one member.
    """
    parts = [checkpoint.tensor(member.name) for member in matrix.members]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _in_order(tensors: Mapping[str, TensorInfo], skipped: tuple[Skipped, ...]) -> tuple[Skipped, ...]:
    by_name = {one.name: one for one in skipped}
    return tuple(by_name[name] for name in tensors if name in by_name)


def _commonest(found: Discovery) -> str:
    """The reasons for which most tensors were skipped."""
    reasons = Counter(one.reason for one in found.skipped).most_common(3)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons) or "the state dict is empty"

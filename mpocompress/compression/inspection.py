"""A file looked at: the report of a compressed one, the overview of any other. No weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from mpocompress._version import __version__
from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.stored_report import stored_report
from mpocompress.errors import CheckpointError, SitesError
from mpocompress.layers.discovery import Discovery, discover_in
from mpocompress.layers.selection import Selection
from mpocompress.layers.specs import LayerSpec, MatrixSpec
from mpocompress.mpo.sites import SitesChoice, candidates, check_choice
from mpocompress.planning.plan import PLAN_TARGETS
from mpocompress.planning.target import Truncation
from mpocompress.reports.compression import Report
from mpocompress.reports.overview import Estimate, Held, Overview, Weight
from mpocompress.text import StrPath
from mpocompress.user.model import UserModel


def overview(
    source: str | PathLike[str],
    *,
    truncations: Sequence[Truncation] = PLAN_TARGETS,
    sites: SitesChoice = "auto",
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    model: UserModel | None = None,
    key: str | None = None,
    allow_pickle: bool = False,
) -> Overview:
    """What an ordinary checkpoint is and holds, and what of it could be compressed; no weight is read.

    Args:
        source: the checkpoint.
        truncations: targets to count parameters for; only bonds and fractions to keep can be counted without a weight.
        sites: the site shape that bonds are counted in: a number of balanced sites, else low rank.
        selection: which layers, and in what form.
        model: your own model, to tell layers by their classes, as in `compress`.
        key: where the state dict sits in a nested checkpoint.
        allow_pickle: load a pickle in the ordinary way, which runs the code it names.

    Returns:
        The overview.

    Raises:
        CheckpointError: the source cannot be read, or is compressed.
        SelectionError: a pattern that matches nothing.
        SitesError: a site shape choice that means nothing.
        ModelError: the model cannot be built, or is another one.
    """
    check_choice(sites)
    with open_checkpoint(Path(source), key=key, allow_pickle=allow_pickle) as checkpoint:
        if checkpoint.document is not None:
            raise CheckpointError(
                where=checkpoint.path.name,
                found="a compressed checkpoint",
                why="it has a report in place of an overview",
                action="Inspect it, or give an ordinary checkpoint.",
            )
        return _overview(checkpoint, truncations, sites, selection, model)


def look(
    source: str | PathLike[str],
    *,
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    model: UserModel | None = None,
    key: str | None = None,
    allow_pickle: bool = False,
) -> Report | Overview:
    """What can be said of any checkpoint without reading a weight.

    Args:
        source: the file.
        selection: which layers to look for in an ordinary checkpoint.
        model: your own model, to tell layers by their classes, as in `compress`.
        key: where the state dict sits in a nested checkpoint.
        allow_pickle: load a pickle in the ordinary way, which runs the code it names.

    Returns:
        The report inside a compressed file, the overview of any other.

    Raises:
        CheckpointError: the source cannot be read.
        SelectionError: a pattern that matches nothing.
        ModelError: the model cannot be built, or is another one.
        FormatError: a compressed file that contradicts itself.
        ReportError: figures in it that do not add up.
    """
    with open_checkpoint(Path(source), key=key, allow_pickle=allow_pickle) as checkpoint:
        if checkpoint.document is not None:
            return stored_report(checkpoint)
        return _overview(checkpoint, PLAN_TARGETS, "auto", selection, model)


def _overview(
    checkpoint: Checkpoint,
    truncations: Sequence[Truncation],
    sites: SitesChoice,
    selection: Selection,
    model: UserModel | None,
) -> Overview:
    found = discover_in(checkpoint, selection, model)
    infos = [info for info in checkpoint.tensors.values() if info.alias_of is None]
    parameters = sum(info.numel for info in infos)
    eligible = sum(layer.dense_parameters for layer in found.layers)
    return Overview(
        tool_version=__version__,
        file=checkpoint.path.name,
        container=checkpoint.container,
        key=checkpoint.key,
        files=len(checkpoint.files),
        file_size_bytes=checkpoint.size_bytes,
        recorded_classes=len(checkpoint.classes),
        parameters=parameters,
        eligible_parameters=eligible,
        size_bytes=sum(info.size_bytes for info in infos),
        dtypes=_held(infos),
        weights=_weights(checkpoint, found),
        skipped=found.skipped,
        aliases={name: info.alias_of for name, info in checkpoint.tensors.items() if info.alias_of is not None},
        estimates=tuple(
            Estimate(
                kind=truncation.kind,
                asked=truncation.asked or 0,
                eligible_parameters_after=(after := eligible_after(found.layers, truncation, sites, eligible)),
                parameters=parameters - eligible + after,
            )
            for truncation in truncations
            if truncation.keep is not None or truncation.max_bond is not None
        ),
        estimated_sites=f"{sites} sites" if isinstance(sites, int) else "low rank",
        notes=(*checkpoint.notes, *found.notes),
    )


def _held(infos: Sequence[TensorInfo]) -> tuple[Held, ...]:
    """What there is of every dtype, most bytes first."""
    by_dtype: dict[str, list[TensorInfo]] = {}
    for info in infos:
        by_dtype.setdefault(info.dtype.name, []).append(info)
    held = [
        Held(
            dtype=dtype,
            tensors=len(group),
            parameters=sum(info.numel for info in group),
            size_bytes=sum(info.size_bytes for info in group),
        )
        for dtype, group in by_dtype.items()
    ]
    return tuple(sorted(held, key=lambda one: -one.size_bytes))


def _weights(checkpoint: Checkpoint, found: Discovery) -> tuple[Weight, ...]:
    """Every tensor of the layers by itself, in file order."""
    weights = {}
    for layer in found.layers:
        for matrix in layer.forms[0]:
            for member in matrix.members:
                rows, cols = member.shape
                weights[member.name] = Weight(
                    name=member.name,
                    layer=layer.name,
                    kind=layer.kind,
                    kind_from=matrix.kind_from,
                    shape=(cols, rows) if member.transposed else (rows, cols),
                    transposed=member.transposed,
                    dtype=member.dtype,
                    parameters=rows * cols,
                )
    return tuple(weights[name] for name in checkpoint.tensors if name in weights)


def eligible_after(layers: Sequence[LayerSpec], truncation: Truncation, sites: SitesChoice, eligible: int) -> int:
    """Parameters that a target leaves of the layers, in the form that has LSTM weights apart.

    Args:
        layers: the layers.
        truncation: a bond, or a fraction to keep.
        sites: the site shape that bonds are counted in: a number of balanced sites, else low rank.
        eligible: parameters of the layers.

    Returns:
        The parameters; an upper bound for a fraction.
    """
    if truncation.keep is not None:
        return int(truncation.keep * eligible)
    return sum(_under_cap(layer, matrix, truncation, sites) for layer in layers for matrix in layer.forms[-1])


def _under_cap(layer: LayerSpec, matrix: MatrixSpec, truncation: Truncation, sites: SitesChoice) -> int:
    cap = truncation.bond_cap(layer.name, matrix.name, *(name for member in matrix.members for name in member.names))
    if cap is None:
        return matrix.dense_parameters
    try:
        shape = candidates(*matrix.shape, sites if isinstance(sites, int) else "lowrank")[0]
    except SitesError:
        return matrix.dense_parameters
    return min(matrix.dense_parameters, shape.parameters(shape.capped(cap)))


def inspect(
    source: StrPath,
) -> Report:
    """The report inside a compressed file.

    Args:
        source: a file or folder that `compress` wrote.

    Returns:
        The report, its sums checked, the size of the file filled in.

    Raises:
        CheckpointError: the file cannot be read.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
    """
    with open_checkpoint(source) as checkpoint:
        return stored_report(checkpoint)

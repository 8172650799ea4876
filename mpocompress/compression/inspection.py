"""Inspect a checkpoint: the report of a compressed one, the overview of any other. No weight is read."""

from __future__ import annotations

from collections.abc import Sequence

from mpocompress._version import __version__
from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.options import InspectOptions
from mpocompress.compression.read_report import read_report
from mpocompress.errors import SitesError
from mpocompress.layers.discovery import Discovery, discover_layers
from mpocompress.layers.specs import LayerSpec, MatrixSpec
from mpocompress.mpo.sites import SitesChoice, candidates
from mpocompress.planning.targets import TruncationTarget
from mpocompress.reports.compression import Report
from mpocompress.reports.overview import DtypeTotals, EligibleTensor, Estimate, Overview
from mpocompress.text import StrPath
from mpocompress.user.options import with_keywords


@with_keywords(InspectOptions)
def inspect(source: StrPath, options: InspectOptions) -> Report | Overview:
    """Return the report inside a compressed checkpoint, or an overview of any other; no weight is read.

    The options apply only to uncompressed checkpoints, except `key` and `allow_pickle`, which say how any is read.

    Args:
        source: the checkpoint, a file or a folder.
        options: the fields of `InspectOptions`. Only bonds and fractions to keep can be predicted without a weight;
            bonds are counted for `sites` balanced sites, or else for the low-rank shape.

    Returns:
        The `Report` of a compressed checkpoint, with its sums checked and the size of the file filled in; or the
        `Overview` of any other.

    Raises:
        CheckpointError: the source cannot be read.
        SelectionError: a glob that matches nothing.
        SitesError: an unknown site shape.
        ModelError: the model cannot be built, or does not fit the checkpoint.
        FormatError: a compressed checkpoint that contradicts itself.
        ReportError: figures in it that do not add up.
    """
    with open_checkpoint(source, key=options.key, allow_pickle=options.allow_pickle) as checkpoint:
        return _overview(checkpoint, options) if checkpoint.document is None else read_report(checkpoint)


def _overview(checkpoint: Checkpoint, options: InspectOptions) -> Overview:
    discovery = discover_layers(checkpoint, options.selection, options.model)
    infos = checkpoint.own_tensors
    parameters = sum(info.numel for info in infos)
    eligible = sum(layer.dense_parameters for layer in discovery.layers)
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
        dtypes=_by_dtype(infos),
        weights=_weights(checkpoint, discovery),
        skipped=discovery.skipped,
        aliases=checkpoint.aliases,
        estimates=tuple(
            Estimate(
                kind=target.kind,
                requested=target.value,
                eligible_parameters_after=(after := parameters_left(discovery.layers, target, options.sites)),
                parameters=parameters - eligible + after,
            )
            for target in (truncation.target for truncation in options.truncations)
            if target.is_countable and target.value is not None
        ),
        estimated_sites=f"{options.sites} sites" if isinstance(options.sites, int) else "low rank",
        notes=(*checkpoint.notes, *discovery.notes),
    )


def _by_dtype(infos: Sequence[TensorInfo]) -> tuple[DtypeTotals, ...]:
    """The tensors of every dtype, most bytes first."""
    groups: dict[str, list[TensorInfo]] = {}
    for info in infos:
        groups.setdefault(info.dtype.name, []).append(info)
    totals = [
        DtypeTotals(
            dtype=dtype,
            tensors=len(group),
            parameters=sum(info.numel for info in group),
            size_bytes=sum(info.size_bytes for info in group),
        )
        for dtype, group in groups.items()
    ]
    return tuple(sorted(totals, key=lambda total: -total.size_bytes))


def _weights(checkpoint: Checkpoint, discovery: Discovery) -> tuple[EligibleTensor, ...]:
    """Every compressible tensor, in file order."""
    weights = {}
    for layer in discovery.layers:
        for matrix in layer.forms[0]:
            for member in matrix.members:
                rows, cols = member.shape
                weights[member.name] = EligibleTensor(
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


def parameters_left(layers: Sequence[LayerSpec], target: TruncationTarget, sites: SitesChoice) -> int:
    """Return the parameters that a countable target leaves of the layers, with LSTM weights as separate matrices.

    Args:
        layers: the layers.
        target: the target.
        sites: the site shape to count bonds in: a number of balanced sites, else low rank.

    Returns:
        The parameters; an upper bound for a budget.
    """
    budget = target.budget(eligible=sum(layer.dense_parameters for layer in layers), other=0)
    if budget is not None:
        return budget.parameters
    return sum(_under_cap(layer, matrix, target, sites) for layer in layers for matrix in layer.forms[-1])


def _under_cap(layer: LayerSpec, matrix: MatrixSpec, target: TruncationTarget, sites: SitesChoice) -> int:
    cap = target.bond_cap(layer.name, matrix.name, *(name for member in matrix.members for name in member.names))
    if cap is None:
        return matrix.dense_parameters
    try:
        shape = candidates(*matrix.shape, sites if isinstance(sites, int) else "lowrank")[0]
    except SitesError:
        return matrix.dense_parameters
    return min(matrix.dense_parameters, shape.parameters(shape.capped(cap)))

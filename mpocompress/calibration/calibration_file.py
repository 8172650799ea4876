"""Calibrations in safetensors files: moments as tensors, everything else as a JSON document in the header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mpocompress._version import __version__
from mpocompress.calibration.calibration import Calibration, Point
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.checkpoint.writing.atomic import replacing
from mpocompress.errors import CheckpointError, FormatError, OutputError, OutputExistsError
from mpocompress.mpo.metric import Metric, OutputWeights
from mpocompress.reports.calibration import OutputKind
from mpocompress.reports.json_documents import Document, Positive, Sha256
from mpocompress.text import shown

SUFFIX = ".safetensors"
PARTS = ("second", "mean", "outputs")
"""Tensors of every weight group: second moment and mean of its inputs, second moment of its output gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationHeader(Document):
    """The document in a calibration file; weight group `n` has the tensors `n.second`, `n.mean` and `n.outputs`.

    Args:
        tool_version: version of mpocompress that wrote it.
        sha256: digest of the weights that were calibrated.
        kind: kind of the outputs.
        measure: name of the divergence.
        kind_from: description of the source of `kind`.
        samples: number of samples.
        uncalibrated: tensors without moments: name to reason.
        weight_groups: the weights, in the order of execution.
        counts: number of input rows of each group.
        points: the sensitivities measured so far.
    """

    FORMAT: ClassVar[str] = "mpocompress-calibration"
    IF_DAMAGED: ClassVar[str] = "The file is damaged or was edited: calibrate again."

    tool_version: str
    sha256: Sha256
    kind: OutputKind
    measure: str
    kind_from: str
    samples: Positive
    uncalibrated: Mapping[str, str]
    weight_groups: tuple[WeightGroup, ...]
    counts: tuple[Positive, ...]
    points: tuple[Point, ...]


def check_calibration_file(
    path: str | PathLike[str], *, overwrite: bool, others: Iterable[str | PathLike[str]] = ()
) -> None:
    """Check that a calibration can be written to a file, before the work.

    Args:
        path: the file.
        overwrite: whether an existing file may be replaced.
        others: files that are read or written by the same command and must not be replaced.

    Raises:
        OutputError: the name has another suffix, the folder does not exist, or the file exists and must stay.
    """
    target = Path(path)
    if any(Path(other).resolve() == target.resolve() for other in others):
        raise OutputError(
            where=target.name,
            found="the file of the checkpoint or of the output",
            why="one file would replace the other",
            action="Choose another file for the calibration.",
        )
    if target.suffix != SUFFIX:
        raise OutputError(
            where=target.name,
            found="a name that does not end in .safetensors",
            why="a calibration is a safetensors file",
            action=f"Call it {target.stem}{SUFFIX}.",
        )
    if not target.resolve().parent.is_dir():
        raise OutputError(
            where=target.name,
            found="its folder does not exist",
            why="the file cannot be written",
            action="Create the folder first.",
        )
    if target.exists() and not (overwrite and target.is_file()):
        raise OutputExistsError(
            where=target.name,
            found="the file exists",
            why="existing files are not replaced by default",
            action="Choose another file, or allow it to be replaced.",
        )


def write_calibration(calibration: Calibration, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Write a calibration to a file, so that later compressions need no inputs.

    Args:
        calibration: the calibration.
        path: the file; its name ends in `.safetensors`. It is replaced all or nothing.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: the file cannot be written.
    """
    check_calibration_file(path, overwrite=overwrite)
    header = CalibrationHeader(
        tool_version=__version__,
        sha256=calibration.sha256,
        kind=calibration.kind,
        measure=calibration.measure,
        kind_from=calibration.kind_from,
        samples=calibration.samples,
        uncalibrated=calibration.uncalibrated,
        weight_groups=calibration.units,
        counts=tuple(calibration.metrics[group.name].count for group in calibration.units),
        points=tuple(calibration.points.values()),
    )
    tensors: dict[str, Tensor] = {}
    for number, group in enumerate(calibration.units):
        metric = calibration.metrics[group.name]
        moments = (metric.second, metric.mean, metric.outputs.moment)
        tensors |= {f"{number}.{part}": moment.contiguous() for part, moment in zip(PARTS, moments, strict=True)}
    with replacing(Path(path)) as stream:
        stream.write(save(tensors, metadata={header.FORMAT: header.to_json()}))


def read_calibration(path: str | PathLike[str]) -> Calibration:
    """Read a calibration from a file.

    Args:
        path: the file.

    Returns:
        The calibration, without a model to run: it has the sensitivities that were measured before.

    Raises:
        CheckpointError: the file cannot be read.
        FormatError: the file holds no calibration, or one that contradicts itself.
    """
    source = Path(path)
    try:
        with safe_open(source, framework="pt") as file:
            text = (file.metadata() or {}).get(CalibrationHeader.FORMAT)
            if text is None:
                raise FormatError(
                    where=source.name,
                    found="a safetensors file without a calibration",
                    why="the meaning of its tensors is unknown",
                    action="Pass a file that was saved when calibrating.",
                )
            header = CalibrationHeader.from_json(text, where=source.name)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            where=source.name,
            found=shown(str(error)),
            why="the file cannot be read",
            action="Pass a file that was saved when calibrating.",
        ) from error
    return Calibration(
        sha256=header.sha256,
        units=header.weight_groups,
        metrics=_metrics(header, tensors, source.name),
        uncalibrated=header.uncalibrated,
        kind=header.kind,
        measure=header.measure,
        kind_from=header.kind_from,
        samples=header.samples,
        points={point.key: point for point in header.points},
    )


def _metrics(header: CalibrationHeader, tensors: Mapping[str, Tensor], where: str) -> dict[str, Metric]:
    """Return the metric of every weight group, by name; check that header and tensors agree."""
    if len(header.counts) != len(header.weight_groups):
        raise _damaged(where, f"{len(header.weight_groups)} weight groups with {len(header.counts)} counts")
    metrics = {}
    for number, (group, count) in enumerate(zip(header.weight_groups, header.counts, strict=True)):
        if len(group.members) != len(group.columns):
            found = f"weight_groups[{number}]: {len(group.members)} members with {len(group.columns)} columns"
            raise _damaged(where, found)
        cols, rows = sum(group.columns), group.rows
        shapes: dict[str, list[tuple[int, ...]]] = {
            "second": [(cols, cols)],
            "mean": [(cols,)],
            "outputs": [(rows,), (rows, rows)],
        }
        moments = {}
        for part in PARTS:
            moment = tensors.get(f"{number}.{part}")
            if (
                moment is None
                or tuple(moment.shape) not in shapes[part]
                or moment.dtype != torch.float64
                or not moment.isfinite().all()
            ):
                raise _damaged(where, f"no valid tensor {number}.{part} for {shown(group.name)}")
            moments[part] = moment
        outputs = OutputWeights(moments["outputs"])
        if not outputs.scale > 0.0:
            raise _damaged(where, f"tensor {number}.outputs for {shown(group.name)} without a positive trace")
        metrics[group.name] = Metric(second=moments["second"], mean=moments["mean"], outputs=outputs, count=count)
    return metrics


def _damaged(where: str, found: str) -> FormatError:
    return FormatError(
        where=where, found=found, why="header and tensors must agree", action=CalibrationHeader.IF_DAMAGED
    )

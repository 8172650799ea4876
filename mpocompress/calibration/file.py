"""A calibration in a safetensors file: moments as tensors, all else as one JSON document in its header."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpocompress._version import __version__
from mpocompress.calibration.calibration import Calibration, Point
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.errors import CheckpointError, FormatError, OutputError, OutputExistsError
from mpocompress.mpo.metric import Metric, OutputWeights
from mpocompress.reports.calibration import OUTPUT_KINDS
from mpocompress.reports.documents import build, fields_of, read_document, typed
from mpocompress.text import shown

SUFFIX = ".safetensors"
FORMAT, VERSION = "mpocompress-calibration", 1
_DAMAGED = "The file is damaged or was edited: calibrate again."


def check_calibration_file(
    path: str | PathLike[str], *, overwrite: bool, others: Iterable[str | PathLike[str]] = ()
) -> None:
    """Refuse a place where a calibration cannot be kept, before the work.

    Args:
        path: the file.
        overwrite: whether it may be there already.
        others: files that are read or written as well, and must not be replaced by it.

    Raises:
        OutputError: the name has another ending, the folder is not there, or the file is and may not be replaced.
    """
    target = Path(path)
    if any(Path(other).resolve() == target.resolve() for other in others):
        raise OutputError(
            where=target.name,
            found="the checkpoint itself, or what it is compressed to",
            why="one would overwrite the other",
            action="Name another file for the calibration.",
        )
    if target.suffix != SUFFIX:
        raise OutputError(
            where=target.name,
            found="a name that does not end in .safetensors",
            why="a calibration is kept in such a file, and known by its name",
            action=f"Name it {target.stem}{SUFFIX}.",
        )
    if not target.resolve().parent.is_dir():
        raise OutputError(
            where=target.name, found="a folder that is not there", why="nothing can be written", action="Make it first."
        )
    if target.exists() and not (overwrite and target.is_file()):
        raise OutputExistsError(
            where=target.name,
            found="it exists",
            why="nothing is overwritten unasked",
            action="Name another file, or allow it to be replaced.",
        )


def write_calibration(calibration: Calibration, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Keep a calibration in a file, so that many budgets cost one pass over the inputs.

    Args:
        calibration: what was measured.
        path: where to; it ends in `.safetensors`. Written beside it and renamed.
        overwrite: whether it may be there already.

    Raises:
        OutputError: it cannot be written.
    """
    check_calibration_file(path, overwrite=overwrite)
    target = Path(path)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "tool_version": __version__,
        "sha256": calibration.sha256,
        "kind": calibration.kind,
        "measure": calibration.measure,
        "said": calibration.said,
        "samples": calibration.samples,
        "left_out": dict(calibration.left_out),
        "units": [{**fields_of(unit), "count": calibration.metrics[unit.name].count} for unit in calibration.units],
        "points": [fields_of(point) for point in calibration.points.values()],
    }
    tensors: dict[str, Tensor] = {}
    for number, unit in enumerate(calibration.units):
        metric = calibration.metrics[unit.name]
        parts = {"second": metric.second, "mean": metric.mean, "outputs": metric.outputs.moment}
        tensors |= {f"{number}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    number, name = tempfile.mkstemp(dir=target.resolve().parent, prefix=f".{target.name}.")
    os.close(number)
    try:
        save_file(tensors, name, metadata={FORMAT: json.dumps(document, allow_nan=False)})
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            where=target.name,
            found=shown(str(error)),
            why="the calibration could not be written",
            action="Free some space, or name another place.",
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_calibration(path: str | PathLike[str]) -> Calibration:
    """Read a calibration back.

    Args:
        path: the file.

    Returns:
        The calibration, without a model to run: losses are known as far as they were measured before.

    Raises:
        CheckpointError: the file cannot be read.
        FormatError: it holds no calibration, or one that contradicts itself.
    """
    source = Path(path)
    try:
        with safe_open(source, framework="pt") as held:
            text = (held.metadata() or {}).get(FORMAT)
            if text is None:
                raise FormatError(
                    where=source.name,
                    found="a safetensors file without a calibration",
                    why="it is not known what its tensors are",
                    action="Give a file that was kept when calibrating.",
                )
            document = read_document(text, name=FORMAT, version=VERSION, where=source.name)
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            where=source.name,
            found=shown(str(error)),
            why="the file cannot be read",
            action="Give a file that was kept when calibrating.",
        ) from error
    try:
        return _calibration(document, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            where=source.name, found=f"no usable {error}", why="the calibration is not whole", action=_DAMAGED
        ) from error


def _calibration(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
    units, metrics = [], {}
    for number, entry in enumerate(document["units"]):
        unit: WeightGroup = build(WeightGroup, entry)
        if not unit.members or len(unit.members) != len(unit.columns) or min(unit.columns) < 1:
            raise ValueError(f"members of unit {number}")
        cols, rows = sum(unit.columns), unit.rows
        found = {part: tensors[f"{number}.{part}"] for part in ("second", "mean", "outputs")}
        wanted: dict[str, list[tuple[int, ...]]] = {
            "second": [(cols, cols)],
            "mean": [(cols,)],
            "outputs": [(rows,), (rows, rows)],
        }
        for part, tensor in found.items():
            if tuple(tensor.shape) not in wanted[part] or tensor.dtype != torch.float64 or not tensor.isfinite().all():
                raise ValueError(f"{part} of {unit.name}")
        count = typed(entry["count"], "int", "count")
        outputs = OutputWeights(found["outputs"])
        if count < 1 or not outputs.scale > 0.0:
            raise ValueError(unit.name)
        units.append(unit)
        metrics[unit.name] = Metric(second=found["second"], mean=found["mean"], outputs=outputs, count=count)
    points: list[Point] = [build(Point, entry) for entry in document["points"]]
    odd = next((point for point in points if point.bond < 1 or point.divergence < 0.0), None)
    if odd is not None:
        raise ValueError(f"sensitivity of {odd.matrix}")
    if document["kind"] not in OUTPUT_KINDS:
        raise ValueError(f"kind {document['kind']!r:.60}")
    return Calibration(
        sha256=typed(document["sha256"], "str", "sha256"),
        units=tuple(units),
        metrics=metrics,
        left_out=typed(document["left_out"], "Mapping[str, str]", "left_out"),
        kind=typed(document["kind"], "str", "kind"),
        measure=typed(document["measure"], "str", "measure"),
        said=typed(document["said"], "str", "said"),
        samples=typed(document["samples"], "int", "samples"),
        points={point.key: point for point in points},
    )

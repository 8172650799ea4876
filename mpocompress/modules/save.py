"""A model with MPO layers back into the file format, from any place and after any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from mpocompress.checkpoint import (
    Checkpoint,
    check_output,
    container_for,
    left_out,
    restore,
    state_extras,
    write_checkpoint,
)
from mpocompress.errors import ModelError
from mpocompress.modules.live_checkpoint import live_checkpoint
from mpocompress.modules.provenance import record_of
from mpocompress.modules.saved_report import Found, renewed_report
from mpocompress.nn import MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import FLOAT_DTYPES
from mpocompress.text import listed, shown
from mpocompress.user.name_alignment import strip_wrappers

_MOST_SHOWN = 5


def save(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    overwrite: bool = False,
) -> Report:
    """Write a model with MPO layers into a compressed file, which `load`, `expand` and `inspect` read.

    It may have been trained, moved or converted since it was loaded, and may be a part of the model that was loaded or
    hold it as a part. Every tensor of its state dict is written. What DataParallel, DistributedDataParallel and
    torch.compile put around a model is taken off its names.

    Args:
        model: a model that `load` or `compress_module` gave.
        path: what to write; a name ending in `.safetensors` makes a safetensors file, any other a torch file.
        overwrite: replace an existing file.

    Returns:
        The report inside the file: that of the compression, with the names, dtypes and sums of this model.

    Raises:
        ModelError: the model holds no MPO layer, cores that came from no file or from different ones, or NaN or Inf.
        CheckpointError: a tensor that no file can hold.
        OutputError: the file cannot be written.
        ReportError: figures that do not add up; a bug, and nothing is written.

    Example:
        >>> from mpocompress.modules.compress import compress_module
        >>> from mpocompress.planning.target import Truncation
        >>> small, _ = compress_module(nn.Sequential(nn.Linear(64, 128)), truncation=Truncation(max_bond=8))
        >>> save(small, "small-net.safetensors").compressed[0].bonds
        (8,)
    """
    named, path = path, Path(path)
    container = container_for(named)
    check_output(path, overwrite=overwrite, inputs=())
    inner = _taken_out(model)
    found = _found_in(inner)
    live = live_checkpoint(inner)
    tensors = _stored(found, live)
    _check_values(found, tensors)
    report = renewed_report(found, live.tensors, tensors, live.notes)
    beside = state_extras(live.extras, "")
    dropped = left_out(container, extras=live.extras, metadata={})
    if dropped:
        note = f"left out, since a {container} file cannot hold them: {listed(dropped, _MOST_SHOWN)}"
        report = dataclasses.replace(report, notes=(*report.notes, note))
    report.check()
    size = write_checkpoint(
        path,
        tensors=tensors,
        aliases={name: first for name, first in report.aliases.items() if first in tensors},
        container=container,
        key="state_dict",
        extras=restore({}, report.source.key, beside, str(path)) if beside else {},
        metadata={},
        document=report.to_json(),
        overwrite=overwrite,
        inputs=(),
    )
    return dataclasses.replace(report, totals=dataclasses.replace(report.totals, file_size_bytes_after=size))


def _taken_out(model: nn.Module) -> nn.Module:
    """The model inside what torch puts around one."""
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    while wrapped or type(model).__name__ == "OptimizedModule":
        (model,) = model.children()
        wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return model


def _found_in(model: nn.Module) -> tuple[Found, ...]:
    """Every weight made of cores, once, with all its places."""
    paths: dict[int, list[str]] = {}
    weights: dict[int, MPOWeight] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MPOWeight):
            weights[id(module)] = module
            paths.setdefault(id(module), []).append(strip_wrappers(path))
    if not weights or isinstance(model, MPOWeight):
        raise ModelError(
            where=type(model).__name__,
            found="a weight by itself" if weights else "no MPO layer",
            why="what is written is a model with MPO layers",
            action="Give a model that `load` or `compress_module` gave; save any other with torch.save.",
        )
    records = {key: record_of(weight) for key, weight in weights.items()}
    unknown = [paths[key][0] for key, record in records.items() if record is None]
    if unknown:
        raise ModelError(
            where=shown(unknown[0]),
            found="cores that came from no compressed file or model",
            why="there is no report of what they are an approximation of",
            action="Save the model with torch.save, or compress it whole.",
        )
    found = tuple(
        Found(weight=weights[key], record=record, paths=tuple(paths[key]))
        for key, record in records.items()
        if record is not None
    )
    for one in found[1:]:
        before, other = found[0].record.report, one.record.report
        if (before.source, before.target) != (other.source, other.target):
            raise ModelError(
                where=shown(one.paths[0]),
                found=f"cores from {shown(other.source.file)}, beside others from {shown(before.source.file)}",
                why="a file has the report of one compression",
                action="Save the parts of the model into files of their own.",
            )
    return found


def _stored(found: Sequence[Found], live: Checkpoint) -> dict[str, Tensor]:
    """The tensors to be written: of tied ones the first. The format ties whole weights, so single cores are copied."""
    cores = {core for one in found for core in one.core_names(one.paths[0])}
    tied = {core for one in found for place in one.paths[1:] for core in one.core_names(place)}
    tensors = {}
    for name, info in live.tensors.items():
        if name in tied:
            continue
        if info.alias_of is None:
            tensors[name] = live.tensor(name)
        elif name in cores or info.alias_of in cores:
            tensors[name] = live.tensor(name).clone()
    return tensors


def _check_values(found: Sequence[Found], tensors: Mapping[str, Tensor]) -> None:
    """Refuse cores that could not be read back."""
    for one in found:
        path, names = one.paths[0], one.core_names(one.paths[0])
        dtypes = {str(core.dtype).removeprefix("torch.") for core in one.weight.cores}
        shapes = [tensors[name].shape if name in tensors else None for name in names]
        if shapes != [core.shape for core in one.weight.cores]:
            found_there, why = (
                "cores that the state dict does not have under their names",
                "they could not be read back",
            )
        elif one.weight.sites != one.record.matrix.sites:
            found_there, why = "cores of other sites than those that were loaded", "the report is not of them"
        elif len(dtypes) > 1 or not dtypes <= set(FLOAT_DTYPES):
            found_there, why = f"cores of {', '.join(sorted(dtypes))}", f"a file holds one of {', '.join(FLOAT_DTYPES)}"
        elif not all(tensors[name].isfinite().all() for name in names):
            found_there, why = "cores that hold NaN or Inf", "a file never does"
        else:
            continue
        raise ModelError(
            where=shown(path), found=found_there, why=why, action="Go back to the state before, or load the file again."
        )

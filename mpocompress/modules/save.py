"""Write a model with MPO layers to a compressed file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike

from torch import Tensor, nn

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.contents.extras import restore, state_extras
from mpocompress.checkpoint.output import Output
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.checkpoint.writing.writer import check_output, left_out, write_checkpoint
from mpocompress.errors import ModelError
from mpocompress.modules.live_checkpoint import live_checkpoint
from mpocompress.modules.provenance import provenance_of
from mpocompress.modules.updated_report import SavedWeight, updated_report
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
    """Write a model with MPO layers to a compressed file, which `load`, `expand` and `inspect` read.

    The model may have been trained, moved or converted since it was loaded, and may be a part of the model that was
    loaded or contain it. Every tensor of its state dict is written. Wrappers (DataParallel, DistributedDataParallel,
    torch.compile) are removed, and their prefixes are removed from the names.

    Args:
        model: a model from `load` or `compress_module`.
        path: the output; a name ending in `.safetensors` gives a safetensors file, any other a torch file.
        overwrite: replace an existing file.

    Returns:
        The report inside the file: that of the compression, with the names, dtypes and sums of this model.

    Raises:
        ModelError: the model has no MPO layer, has cores that came from no file or from different ones, or NaN or Inf.
        CheckpointError: a tensor that no file can hold.
        OutputError: the file cannot be written.
        ReportError: figures that do not add up; this is a bug, and nothing is written.

    Example:
        >>> from mpocompress.modules.compress import compress_module
        >>> from mpocompress.planning.targets import Truncation
        >>> small, _ = compress_module(nn.Sequential(nn.Linear(64, 128)), truncation=Truncation(max_bond=8))
        >>> save(small, "small-net.safetensors").compressed[0].bonds
        (8,)
    """
    output = Output.named(path, overwrite=overwrite)
    check_output(output.path, overwrite=overwrite, inputs=())
    inner = _without_wrappers(model)
    weights = _saved_weights(inner)
    live = live_checkpoint(inner)
    tensors = _stored_tensors(weights, live)
    _check_values(weights, tensors)
    report = updated_report(weights, live.tensors, tensors, live.notes)
    extra_states = state_extras(live.extras, "")
    dropped = left_out(output.container, extras=live.extras, metadata={})
    if dropped:
        note = f"not stored, because a {output.container} file cannot hold them: {listed(dropped, _MOST_SHOWN)}"
        report = dataclasses.replace(report, notes=(*report.notes, note))
    report.check()
    size = write_checkpoint(
        output.path,
        tensors=tensors,
        aliases={name: first for name, first in report.aliases.items() if first in tensors},
        container=output.container,
        key="state_dict",
        extras=restore({}, report.source.key, extra_states, str(output.path)) if extra_states else {},
        metadata={},
        document=report.to_json(),
        overwrite=overwrite,
        inputs=(),
    )
    return dataclasses.replace(report, totals=dataclasses.replace(report.totals, file_size_bytes_after=size))


def _without_wrappers(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of torch."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or (
        type(model).__name__ == "OptimizedModule"
    ):
        (model,) = model.children()
    return model


def _saved_weights(model: nn.Module) -> tuple[SavedWeight, ...]:
    """Return every MPO weight once, with all its paths."""
    paths: dict[int, list[str]] = {}
    weights: dict[int, MPOWeight] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MPOWeight):
            weights[id(module)] = module
            paths.setdefault(id(module), []).append(strip_wrappers(path))
    if not weights or isinstance(model, MPOWeight):
        raise ModelError(
            where=type(model).__name__,
            found="a single weight" if weights else "no MPO layer",
            why="only a model with MPO layers can be saved",
            action="Pass a model from `load` or `compress_module`; save any other with torch.save.",
        )
    origins = {key: provenance_of(weight) for key, weight in weights.items()}
    unknown = [paths[key][0] for key, provenance in origins.items() if provenance is None]
    if unknown:
        raise ModelError(
            where=shown(unknown[0]),
            found="cores that came from no compressed file or model",
            why="there is no report of the compression",
            action="Save the model with torch.save, or compress the whole model.",
        )
    saved = tuple(
        SavedWeight(weight=weights[key], provenance=provenance, paths=tuple(paths[key]))
        for key, provenance in origins.items()
        if provenance is not None
    )
    first = saved[0].provenance.report
    for weight in saved[1:]:
        report = weight.provenance.report
        if (first.source, first.target) != (report.source, report.target):
            raise ModelError(
                where=shown(weight.path),
                found=f"cores from {shown(report.source.file)}, beside others from {shown(first.source.file)}",
                why="a file has the report of one compression",
                action="Save the parts of the model to separate files.",
            )
    return saved


def _stored_tensors(weights: Sequence[SavedWeight], live: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors to write: of tied ones the first.

    The format ties whole weights only, so a single tied core is copied.
    """
    cores = {name for weight in weights for name in weight.core_names(weight.path)}
    tied = {name for weight in weights for name in weight.tied_core_names()}
    tensors = {}
    for name, info in live.tensors.items():
        if name in tied:
            continue
        if info.alias_of is None:
            tensors[name] = live.tensor(name)
        elif name in cores or info.alias_of in cores:
            tensors[name] = live.tensor(name).clone()
    return tensors


def _check_values(weights: Sequence[SavedWeight], tensors: Mapping[str, Tensor]) -> None:
    """Refuse cores that could not be read back from a file."""
    for saved in weights:
        names = saved.core_names(saved.path)
        dtypes = {dtype_of(core.dtype).name for core in saved.weight.cores}
        shapes = [tensors[name].shape if name in tensors else None for name in names]
        if shapes != [core.shape for core in saved.weight.cores]:
            found, why = "cores that are not in the state dict under their names", "they could not be read back"
        elif saved.weight.sites != saved.provenance.matrix.sites:
            found, why = "cores with other sites than when they were loaded", "the report does not describe them"
        elif len(dtypes) > 1 or not dtypes <= set(FLOAT_DTYPES):
            found, why = (
                f"cores of {', '.join(sorted(dtypes))}",
                f"they must all be of one of {', '.join(FLOAT_DTYPES)}",
            )
        elif not all(tensors[name].isfinite().all() for name in names):
            found, why = "cores that hold NaN or Inf", "a compressed file must not hold them"
        else:
            continue
        raise ModelError(
            where=shown(saved.path), found=found, why=why, action="Return to an earlier state, or load the file again."
        )

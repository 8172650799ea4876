"""Compress a model in memory into a copy with MPO layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import Tensor, nn

from mpocompress.calibration.calibrate import calibration_for
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.compression.build_report import outcome_report
from mpocompress.compression.compress_matrices import compress_matrices
from mpocompress.compression.job import CompressionJob
from mpocompress.compression.survey import find_layers
from mpocompress.errors import ModelError
from mpocompress.layers.selection import Selection
from mpocompress.modules.compatibility import check_changeable, replaceable
from mpocompress.modules.live_checkpoint import live_checkpoint
from mpocompress.modules.name_matching import Match, ParameterRef, described, parameter_refs
from mpocompress.modules.options import CompressModuleOptions
from mpocompress.modules.swap import Replacement, new_weights, plan_replacements, replaced
from mpocompress.nn import MPOWeight
from mpocompress.nn.execution import checked
from mpocompress.parallel import available_cores
from mpocompress.reports.compression import Report
from mpocompress.text import shown
from mpocompress.user.name_alignment import strip_wrappers
from mpocompress.user.options import with_keywords


@with_keywords(CompressModuleOptions)
def compress_module(model: nn.Module, options: CompressModuleOptions) -> tuple[nn.Module, Report]:
    """Compress a model in memory: a copy of it in which the compressed layers are MPO layers.

    The result is that of `compress` and `load` on its state dict, except that cores rounded to `dtype` are held in the
    dtype of the weight. The given model is not changed and shares nothing with the new one; the weights that are
    replaced are never copied.

    Args:
        model: the model, on any device.
        options: the fields of `CompressModuleOptions`.

    Returns:
        The new model, and the report.

    Raises:
        CheckpointError: nothing can be compressed.
        SelectionError: a glob that matches nothing.
        ModelError: the model cannot be copied, or a layer to compress cannot be replaced.
        SitesError: an unknown site shape.
        TargetError: a target that no bonds meet, or a value out of range.
        ExecutionError: an unknown execution.
        OutputError: the folder for temporary files is full.
        ReportError: figures that do not add up; this is a bug.

    Example:
        >>> from mpocompress.planning.targets import Truncation
        >>> small, report = compress_module(nn.Sequential(nn.Linear(64, 128)), truncation=Truncation(max_bond=8))
        >>> small[0].weight.bonds == report.compressed[0].bonds
        True
    """
    execution = checked(options.execution)
    check_changeable(model)
    _check_uncompressed(model)
    checkpoint = live_checkpoint(model)
    _check_layers(checkpoint, options.selection, model)
    with Spool(Path(gettempdir(), checkpoint.path.name)) as spool:
        job = CompressionJob(
            checkpoint=checkpoint,
            spool=spool,
            target=options.truncation.target,
            sites=options.sites,
            selection=options.selection,
            model=None,
            dtype=options.dtype_name,
        )
        calibration = None
        if options.calibration is not None:
            calibration = calibration_for(options.calibration, model, checkpoint, options.progress)
        outcome = compress_matrices(job, calibration, jobs=options.jobs or available_cores(), progress=options.progress)
        notes = calibration.notes if calibration is not None else ()
        report = outcome_report(outcome, target=options.truncation.target, notes=notes)
        mpos = {matrix.report.name: mpo for matrix in outcome.matrices if (mpo := matrix.mpo(spool)) is not None}
        replacements = plan_replacements(_matches(parameter_refs(model), report))
        weights = new_weights(replacements, mpos, report)
    copied = _copy(model, replacements)
    in_copy = [
        dataclasses.replace(replacement, module=copied.get_submodule(replacement.path)) for replacement in replacements
    ]
    with replaced(copied, in_copy, weights, execution) as new_model:
        _set_biases(new_model, outcome.biases)
        return new_model, report


def _set_biases(model: nn.Module, biases: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            bias = biases.get(strip_wrappers(name))
            if bias is not None:
                parameter.copy_(bias)


def _check_uncompressed(model: nn.Module) -> None:
    path = next((path for path, module in model.named_modules() if isinstance(module, MPOWeight)), None)
    if path is not None:
        raise ModelError(
            where=shown(path) or type(model).__name__,
            found="the model has cores already",
            why="compressing them again would add a second error",
            action="Pass the model before its compression.",
        )


def _check_layers(checkpoint: Checkpoint, selection: Selection, model: nn.Module) -> None:
    """Refuse, before the work, layers that cannot be replaced after it."""
    refs = {strip_wrappers(name): ref for name, ref in parameter_refs(model).items()}
    for layer in find_layers(checkpoint, selection).layers:
        for matrix in (matrix for form in layer.forms for matrix in form):
            ref = refs.get(matrix.members[0].name)
            if ref is None:
                raise _no_module(matrix.members[0].name)
            kind = replaceable(ref.module, ref.module_path)
            if len(matrix.members) > 1 and kind == "parameter":
                raise ModelError(
                    where=shown(layer.name) or "the model",
                    found=f"{described(ref.module)}, which has a forward of its own",
                    why="its weights cannot become one joint matrix",
                    action="Compress with lstm='separate', or exclude the layer.",
                )


def _matches(refs: Mapping[str, ParameterRef], report: Report) -> tuple[Match, ...]:
    """Return the weights that are replaced, under all their names."""
    members = {name: (matrix, index) for matrix in report.compressed for index, name in enumerate(matrix.members)}
    by_name = {strip_wrappers(name): ref for name, ref in refs.items()}
    unknown = next((name for name in members if name not in by_name), None)
    if unknown is not None:
        raise _no_module(unknown)
    matches = []
    for name, ref in by_name.items():
        matrix, member = members.get(report.aliases.get(name, name), (None, 0))
        if matrix is not None:
            matches.append(Match(ref=ref, matrix=matrix, member=member, stored_name=name))
    return tuple(matches)


def _copy(model: nn.Module, replacements: Sequence[Replacement]) -> nn.Module:
    """Return a copy of the model in which the replaced weights have no memory."""
    tensors = {
        id(ref.tensor): ref.tensor
        for replacement in replacements
        for weight in replacement.weights.values()
        for ref in weight.refs
    }
    memo: dict[int, object] = {
        key: nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
        if isinstance(tensor, nn.Parameter)
        else torch.empty_like(tensor, device="meta")
        for key, tensor in tensors.items()
        if tensor is not None
    }
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            where=type(model).__name__,
            found=f"copying it failed ({shown(f'{type(error).__name__}: {error}')})",
            why="the compressed model is a copy, and the given one is not changed",
            action="Compress a file with its state dict, and load that file.",
        ) from error


def _no_module(name: str) -> ModelError:
    return ModelError(
        where=shown(name),
        found="a name in the state dict that no module has",
        why="its parameter cannot be identified",
        action="Compress a file with the state dict instead.",
    )

"""Compressing a model in memory: a new one with MPO layers, and the report."""

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
from mpocompress.compression.job import CompressionJob
from mpocompress.compression.reporting import outcome_report
from mpocompress.compression.run import compress_matrices
from mpocompress.compression.survey import find_layers
from mpocompress.errors import ModelError
from mpocompress.jobs import available_cores
from mpocompress.layers.selection import Selection
from mpocompress.modules.compatibility import check_changeable, form_of
from mpocompress.modules.live_checkpoint import live_checkpoint
from mpocompress.modules.name_matching import Placed, Slot, described, slots_of
from mpocompress.modules.options import CompressModuleOptions
from mpocompress.modules.swap import Change, changes_for, made_weights, swapped
from mpocompress.nn import MPOWeight
from mpocompress.nn.execution import checked
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
        CheckpointError: nothing to compress.
        SelectionError: a pattern that matches nothing.
        ModelError: the model cannot be copied, or a layer that is to be compressed cannot be replaced.
        SitesError: a site shape choice that means nothing.
        TargetError: a target that no choice of bonds meets; a dtype that is none of the five, or jobs below 1.
        ExecutionError: an execution that there is not.
        OutputError: the folder for temporary files is full.
        ReportError: figures that do not add up; a bug.

    Example:
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
        changes = changes_for(_placed(slots_of(model), report))
        weights = made_weights(changes, mpos, report)
    clone = _copied(model, changes)
    moved = [dataclasses.replace(change, module=clone.get_submodule(change.path)) for change in changes]
    with swapped(clone, moved, weights, execution) as new:
        _change(new, outcome.biases)
        return new, report


def _change(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give biases their new values."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = values.get(strip_wrappers(name))
            if value is not None:
                parameter.copy_(value)


def _check_uncompressed(model: nn.Module) -> None:
    path = next((path for path, module in model.named_modules() if isinstance(module, MPOWeight)), None)
    if path is not None:
        raise ModelError(
            where=shown(path) or type(model).__name__,
            found="cores",
            why="compressing them again would add a second error",
            action="Give the model as it was before it was compressed.",
        )


def _check_layers(checkpoint: Checkpoint, selection: Selection, model: nn.Module) -> None:
    """Refuse, before the work, layers that could not be replaced after it."""
    slots = {strip_wrappers(name): slot for name, slot in slots_of(model).items()}
    for layer in find_layers(checkpoint, selection).layers:
        for matrix in (matrix for form in layer.forms for matrix in form):
            slot = slots.get(matrix.members[0].name)
            if slot is None:
                raise _unknown(matrix.members[0].name)
            form = form_of(slot.module, slot.name.rpartition(".")[0])
            if len(matrix.members) > 1 and form == "parameter":
                raise ModelError(
                    where=shown(layer.name) or "the model",
                    found=f"{described(slot.module)}, which runs in its own way",
                    why="its weights cannot be taken as one matrix",
                    action="Compress with lstm='separate', or leave the layer out.",
                )


def _placed(slots: Mapping[str, Slot], report: Report) -> tuple[Placed, ...]:
    """The weights that are replaced, under all their names."""
    homes = {member: (matrix, n) for matrix in report.compressed for n, member in enumerate(matrix.members)}
    named = {strip_wrappers(name): slot for name, slot in slots.items()}
    unknown = next((name for name in homes if name not in named), None)
    if unknown is not None:
        raise _unknown(unknown)
    placed = []
    for name, slot in named.items():
        matrix, member = homes.get(report.aliases.get(name, name), (None, 0))
        if matrix is not None:
            placed.append(Placed(slot=slot, matrix=matrix, member=member, name=name))
    return tuple(placed)


def _copied(model: nn.Module, changes: Sequence[Change]) -> nn.Module:
    """A copy of the model in which the weights that are replaced have no memory."""
    tensors = {
        id(slot.tensor): slot.tensor for change in changes for new in change.weights.values() for slot in new.slots
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
            why="the given model is left as it is, and the new one is a copy",
            action="Compress a file with its state dict, and load that.",
        ) from error


def _unknown(name: str) -> ModelError:
    return ModelError(
        where=shown(name),
        found="a name in the state dict that no module has",
        why="there is no telling which parameter it stands for",
        action="Compress a file with the state dict instead.",
    )

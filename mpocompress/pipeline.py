"""The one place where the steps are joined: open, discover, survey, plan, decompose, write, report."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import Tensor

from mpocompress.accounting import checkpoint_report, planned_target, stored_report, untouched_reports
from mpocompress.calibration import (
    Calibration,
    CalibrationInputs,
    CalibrationSource,
    calibration_for,
    check_calibration_file,
    write_calibration,
)
from mpocompress.checkpoint import (
    TORCH_ZIP,
    Checkpoint,
    Spool,
    carried_notes,
    check_target,
    container_for,
    open_checkpoint,
    write_like,
    write_target,
)
from mpocompress.errors import CheckpointError, OutputError
from mpocompress.jobs import Progress, one_blas_thread
from mpocompress.plan_report import PlanReport
from mpocompress.planning import PLAN_TARGETS
from mpocompress.report import Report
from mpocompress.rewriter import compressed_tensors, dense_tensors, places_of_cores, places_of_members
from mpocompress.selection import Selection
from mpocompress.sensitivity import planned_divergence, weigh_all
from mpocompress.sites import SitesChoice, check_choice
from mpocompress.survey import survey_checkpoint
from mpocompress.task import DTYPES, Task, check_dtype, chosen_jobs
from mpocompress.text import shown
from mpocompress.truncation import Truncation
from mpocompress.user_model import UserModel, runnable
from mpocompress.with_data import outcome_report, work

StrPath = str | PathLike[str]


def compress(
    source: StrPath,
    target: StrPath,
    *,
    truncation: Truncation,
    sites: SitesChoice = "auto",
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    model: UserModel | None = None,
    calibration: CalibrationSource | None = None,
    save_calibration: StrPath | None = None,
    dtype: str | None = None,
    key: str | None = None,
    allow_pickle: bool = False,
    jobs: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compress a checkpoint, a file or a folder, into another one.

    Args:
        source: the checkpoint; of one in shards, its folder or its index.
        target: what to write; a name ending in `.safetensors` makes a safetensors file, any other a torch file. If the
            source is a folder, a name that does not end like a file (`.pt`, `.bin` and so on) makes a folder.
        truncation: what to reach.
        sites: a site shape choice for every matrix.
        selection: which layers, and in what form.
        model: your own model, to tell layers by their classes: a module, `file.py:name` or `package.module:name` of one
            or of what builds it (that is imported and run), or module path -> class.
        calibration: inputs that the model is run with, to see what matters to its output: batches, or where they are,
            or `CalibrationInputs` that say more; or a calibration that was made before, or the file it is in. Without,
            weights alone count.
        save_calibration: where to keep what was measured with them, for other budgets.
        dtype: dtype of the stored cores, `float16`, `bfloat16`, `float32`, `float64` or `int8`, whose scales are stored
            beside them; by default that of the weight.
        key: where the state dict sits in a nested checkpoint; found by itself where it is plain.
        allow_pickle: load a pickle in the ordinary way, which runs the code it names.
        jobs: matrices worked on at the same time; by default the number of cores. The result does not depend on it.
        overwrite: replace an existing target; a folder only if it was written here.
        progress: told how far the work is.

    Returns:
        The report; the same document is in the file.

    Raises:
        CheckpointError: the source cannot be read, or holds nothing to compress.
        OutputError: the target cannot be written.
        SelectionError: a pattern that matches nothing.
        ModelError: the model cannot be built, or is another one.
        CalibrationError: calibration inputs cannot be made, or the model does not take them.
        SitesError: a site shape choice that means nothing.
        TargetError: a target that no choice of bonds meets; a dtype that is none of the five, or jobs below 1.
        FormatError: the source is marked as compressed but not laid out like it.
        ReportError: figures that do not add up; a bug, and nothing is written.
    """
    named, source, target = target, Path(source), Path(target)
    check_dtype(dtype)
    check_choice(sites)
    if save_calibration is not None:
        check_calibration_file(save_calibration, overwrite=overwrite, others=(source, target))
    model, ran = runnable(model) if calibration is not None else (model, ())
    with open_checkpoint(source, key=key, allow_pickle=allow_pickle) as checkpoint:
        container = container_for(named, checkpoint.layout)
        check_target(target, container=container, overwrite=overwrite, checkpoint=checkpoint)
        if save_calibration is not None:
            check_calibration_file(save_calibration, overwrite=overwrite, others=(*checkpoint.files, target))
        with Spool(target) as spool:
            task = Task(
                checkpoint=checkpoint,
                spool=spool,
                truncation=truncation,
                sites=sites,
                selection=selection,
                model=model,
                dtype=dtype,
            )
            known = None
            if calibration is not None:
                known = calibration_for(calibration, model, checkpoint, progress)
            keep = save_calibration is not None
            came = work(task, known, jobs=chosen_jobs(jobs), progress=progress, measure=keep)
            if known is not None and save_calibration is not None:
                write_calibration(known, save_calibration, overwrite=overwrite)
            cores = {
                one.report.name: (one.report, made) for one in came.done if (made := one.stored(spool)) is not None
            }
            tensors = compressed_tensors(checkpoint.tensors, cores, checkpoint.tensor, came.changed)
            report = outcome_report(
                came,
                truncation=truncation,
                notes=(*ran, *(known.notes if known else ()), *carried_notes(container, checkpoint)),
            )
            size = write_target(
                target,
                container=container,
                checkpoint=checkpoint,
                tensors=tensors,
                aliases={name: first for name, first in report.aliases.items() if first in tensors},
                shards=places_of_cores(report.compressed, _shards(checkpoint)),
                key="state_dict",
                document=report.to_json(),
                overwrite=overwrite,
            )
    return dataclasses.replace(report, totals=dataclasses.replace(report.totals, file_size_bytes_after=size))


def calibrate(
    source: StrPath,
    inputs: CalibrationInputs | str | Iterable[object],
    model: UserModel,
    *,
    key: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Run a model over calibration inputs, so that many compressions of its checkpoint cost one pass.

    Args:
        source: the checkpoint.
        inputs: what the model is called with, or where it is.
        model: the model that the checkpoint was saved from, as a module, or `file.py:name` or `package.module:name` of
            one or of what builds it (that is imported and run).
        key: where the state dict sits in a nested checkpoint.
        allow_pickle: load a pickle in the ordinary way, which runs the code it names.
        progress: told how far the work is.

    Returns:
        The calibration, with the model and its inputs, to be given to `compress` and `plan`.

    Raises:
        CheckpointError: the source cannot be read.
        ModelError: the model cannot be built, or is another one.
        CalibrationError: the inputs cannot be made, or the model does not take them.
    """
    built, ran = runnable(model)
    with open_checkpoint(source, key=key, allow_pickle=allow_pickle) as checkpoint:
        found = calibration_for(inputs, built, checkpoint, progress)
    return dataclasses.replace(found, notes=(*ran, *found.notes))


def plan(
    source: StrPath,
    *,
    truncations: Sequence[Truncation] = PLAN_TARGETS,
    sites: SitesChoice = "auto",
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    model: UserModel | None = None,
    calibration: CalibrationSource | None = None,
    save_calibration: StrPath | None = None,
    dtype: str | None = None,
    key: str | None = None,
    allow_pickle: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> PlanReport:
    """What a range of targets would make of a checkpoint, without writing anything.

    Args:
        source: the checkpoint.
        truncations: the targets; by default bonds from 4 to 128 and fractions from 1/2 to 1/32.
        sites: a site shape choice for every matrix.
        selection: which layers, and in what form.
        model: your own model, to tell layers by their classes: a module, `file.py:name` or `package.module:name` of one
            or of what builds it (that is imported and run), or module path -> class.
        calibration: inputs that the model is run with, or what was measured with them, as in `compress`.
        save_calibration: where to keep what was measured.
        dtype: dtype that the cores would be stored in; by default that of the weight.
        key: where the state dict sits in a nested checkpoint.
        allow_pickle: load a pickle in the ordinary way, which runs the code it names.
        jobs: matrices worked on at the same time; by default the number of cores.
        progress: told how far the work is.

    Returns:
        The checkpoint as it is, and parameters and predicted errors for every target. All come from one factorisation a
        matrix and site shape.

    Raises:
        CheckpointError: the source cannot be read, or holds nothing to compress.
        SelectionError: a pattern that matches nothing.
        ModelError: the model cannot be built, or is another one.
        CalibrationError: calibration inputs cannot be made, or the model does not take them.
        SitesError: a site shape choice that means nothing.
        TargetError: a dtype that is none of the five, or jobs below 1.
    """
    check_dtype(dtype)
    check_choice(sites)
    if save_calibration is not None:
        check_calibration_file(save_calibration, overwrite=False, others=(source,))
    model, ran = runnable(model) if calibration is not None else (model, ())
    divergences: list[float | None] = [None] * len(truncations)
    with open_checkpoint(source, key=key, allow_pickle=allow_pickle) as checkpoint:
        known = calibration_for(calibration, model, checkpoint, progress) if calibration is not None else None
        found = survey_checkpoint(
            checkpoint,
            selection=selection,
            model=model,
            sites=sites,
            truncations=truncations,
            jobs=chosen_jobs(jobs),
            progress=progress,
        )
        if known is not None:
            measure = save_calibration is not None or any(one.is_budget for one in truncations)
            found, weighed = weigh_all(found, checkpoint, known, measure=measure, progress=progress)
            divergences = [planned_divergence(found, weighed, known, one) for one in truncations]
            if save_calibration is not None:
                write_calibration(known, save_calibration)
            told = (_measured(known),) if any(one is not None for one in divergences) else ()
            ran = (*ran, *known.notes, *told)
    return PlanReport(
        checkpoint=checkpoint_report(
            found, untouched_reports(found), notes=(*ran, *((_rounded(dtype),) if dtype is not None else ()))
        ),
        choices=tuple(
            planned_target(found, truncation, dtype, divergence)
            for truncation, divergence in zip(truncations, divergences, strict=True)
        ),
    )


def _measured(calibration: Calibration) -> str:
    """What the divergences of a plan are."""
    how = (
        "measured on calibration inputs, before any refit"
        if calibration.rig is not None
        else "the sum of what each matrix costs alone"
    )
    return f"Divergence is {how}: {calibration.measure} ({calibration.kind}, since {calibration.said})."


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


def expand(
    source: StrPath,
    target: StrPath,
    *,
    like: StrPath | None = None,
    overwrite: bool = False,
) -> Report:
    """Write an ordinary dense checkpoint from a compressed one: original names, dtypes and nesting.

    Args:
        source: a file or folder that `compress` wrote.
        target: what to write; a name ending in `.safetensors` makes a safetensors file, any other a torch file. If the
            source is a folder, a name that does not end like a file (`.pt`, `.bin` and so on) makes a folder.
        like: the file that was compressed. The target becomes a copy of it, of the same form and with all it holds (a
            whole module, a TorchScript archive, hyperparameters of any class), only the values of its tensors are new.
            Nothing in it is run.
        overwrite: replace an existing target; a folder only if it was written here.

    Returns:
        The report that the compressed file holds; its notes say what the new file could not keep.

    Raises:
        CheckpointError: the source cannot be read.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
        OutputError: the target cannot be written, or the dense tensors would not fit beside it.
    """
    named, source, target = target, Path(source), Path(target)
    with open_checkpoint(source) as checkpoint:
        report = stored_report(checkpoint)
        # In the form of the original it is one file that holds whatever the original does.
        container = container_for(named, checkpoint.layout) if like is None else TORCH_ZIP
        check_target(target, container=container, overwrite=overwrite, checkpoint=checkpoint)
        _check_room(report, target)
        with Spool(target) as spool, one_blas_thread():
            tensors = dense_tensors(report, checkpoint.tensors, checkpoint.tensor, where=source.name, spool=spool)
            if like is not None:
                return _expand_like(checkpoint, report, tensors, like, target, overwrite)
            ties = {name: info.alias_of for name, info in checkpoint.tensors.items() if info.alias_of is not None}
            report = dataclasses.replace(report, notes=carried_notes(container, checkpoint))
            write_target(
                target,
                container=container,
                checkpoint=checkpoint,
                tensors=tensors,
                aliases={**ties, **report.aliases},
                shards=places_of_members(report.compressed, _shards(checkpoint)),
                key=report.source.key,
                document=None,
                overwrite=overwrite,
            )
    return report


def _expand_like(
    checkpoint: Checkpoint,
    report: Report,
    tensors: Mapping[str, Tensor],
    like: StrPath,
    target: Path,
    overwrite: bool,
) -> Report:
    """Write the dense tensors into a copy of the original."""
    with _original(like, report) as original:
        write_like(target, original=original, tensors=tensors, overwrite=overwrite, inputs=checkpoint.files)
        same = original.sha256() == report.source.sha256
        kept = tuple(note.partition(":")[0] for note in original.notes if "copy of the weights" in note)
    notes = []
    if not same:
        notes.append(f"{Path(like).name} has other bytes than the file that was compressed, but its tensors fit")
    if kept:
        notes.append(f"left as they were, since only the state dict is replaced: {', '.join(kept)}")
    return dataclasses.replace(report, notes=tuple(notes))


def _original(like: StrPath, report: Report) -> Checkpoint:
    """The file that was compressed, open at the state dict that was."""
    try:
        return open_checkpoint(like, key=report.source.key)
    except CheckpointError as error:
        if "at key" not in error.found:
            raise
        raise CheckpointError(
            where=error.where,
            found=error.found,
            why=f"there it was in the file that was compressed, {shown(report.source.file)}: this is another one",
            action="Give the original file.",
        ) from error


def _shards(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Tensor -> shard; empty where all are in one file."""
    return checkpoint.layout.shards if checkpoint.layout is not None else {}


def _check_room(report: Report, target: Path) -> None:
    """Refuse to expand what the disk cannot hold, before anything is multiplied out: once put aside, once written."""
    needed = 2 * sum(m.dense_parameters * DTYPES[m.source_dtype].itemsize for m in report.compressed)
    free = shutil.disk_usage(target.resolve().parent).free
    if needed > free:
        raise OutputError(
            where=target.name,
            found=f"{needed:,} bytes to write: the dense weights, and once more while they are put together",
            why=f"the disk has {free:,} bytes free",
            action="Free some space, or write to another disk. If the file is not yours, it may be made to fill disks.",
        )


def _rounded(dtype: str) -> str:
    return f"counted for cores in {dtype}; what rounding to it adds to the errors is measured when they are made"

"""The one place where the steps are joined: open, discover, survey, plan, decompose, write, report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mpocompress.calibration import CalibrationSource, calibration_for, check_calibration_file, write_calibration
from mpocompress.checkpoint.output import carried_notes, check_target, container_for, write_target
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.compression.format import _shards, compressed_tensors, places_of_cores
from mpocompress.compression.job import Task, check_dtype, chosen_jobs
from mpocompress.compression.reporting import outcome_report
from mpocompress.compression.run import work
from mpocompress.jobs import Progress
from mpocompress.layers.selection import Selection
from mpocompress.mpo.sites import SitesChoice, check_choice
from mpocompress.planning.target import Truncation
from mpocompress.reports.compression import Report
from mpocompress.text import StrPath
from mpocompress.user.model import UserModel, runnable


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

"""The one place where the steps are joined: open, discover, survey, plan, decompose, write, report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mpocompress.calibration.calibrate import calibration_for
from mpocompress.calibration.file import check_calibration_file, write_calibration
from mpocompress.checkpoint.output import carried_notes, check_target, container_for, write_target
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.compression.format import _shards, compressed_tensors, places_of_cores
from mpocompress.compression.job import Task
from mpocompress.compression.options import CompressOptions
from mpocompress.compression.reporting import outcome_report
from mpocompress.compression.run import work
from mpocompress.jobs import available_cores
from mpocompress.reports.compression import Report
from mpocompress.text import StrPath
from mpocompress.user.model import resolve_model
from mpocompress.user.options import with_keywords


@with_keywords(CompressOptions)
def compress(source: StrPath, target: StrPath, options: CompressOptions) -> Report:
    """Compress a checkpoint, a file or a folder, into another one.

    Args:
        source: the checkpoint; of one in shards, its folder or its index.
        target: what to write; a name ending in `.safetensors` makes a safetensors file, any other a torch file. If the
            source is a folder, a name that does not end like a file (`.pt`, `.bin` and so on) makes a folder.
        options: the fields of `CompressOptions`.

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
    calibration_file, overwrite = options.save_calibration, options.overwrite
    if calibration_file is not None:
        check_calibration_file(calibration_file, overwrite=overwrite, others=(source, target))
    model, ran = resolve_model(options.model) if options.calibration is not None else (options.model, ())
    with open_checkpoint(source, key=options.key, allow_pickle=options.allow_pickle) as checkpoint:
        container = container_for(named, checkpoint.layout)
        check_target(target, container=container, overwrite=overwrite, checkpoint=checkpoint)
        if calibration_file is not None:
            check_calibration_file(calibration_file, overwrite=overwrite, others=(*checkpoint.files, target))
        with Spool(target) as spool:
            task = Task(
                checkpoint=checkpoint,
                spool=spool,
                truncation=options.truncation,
                sites=options.sites,
                selection=options.selection,
                model=model,
                dtype=options.dtype_name,
            )
            calibration = None
            if options.calibration is not None:
                calibration = calibration_for(options.calibration, model, checkpoint, options.progress)
            outcome = work(
                task,
                calibration,
                jobs=options.jobs or available_cores(),
                progress=options.progress,
                measure=calibration_file is not None,
            )
            if calibration is not None and calibration_file is not None:
                write_calibration(calibration, calibration_file, overwrite=overwrite)
            cores = {
                matrix.report.name: (matrix.report, stored)
                for matrix in outcome.done
                if (stored := matrix.stored(spool)) is not None
            }
            tensors = compressed_tensors(checkpoint.tensors, cores, checkpoint.tensor, outcome.changed)
            report = outcome_report(
                outcome,
                truncation=options.truncation,
                notes=(*ran, *(calibration.notes if calibration else ()), *carried_notes(container, checkpoint)),
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

"""Compress a checkpoint file or folder: open it, compress its matrices, write the output and its report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mpocompress.calibration.calibrate import calibration_for
from mpocompress.calibration.calibration_file import check_calibration_file, write_calibration
from mpocompress.checkpoint.output import Output
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.compression.build_report import outcome_report
from mpocompress.compression.compress_matrices import compress_matrices
from mpocompress.compression.core_tensors import compressed_tensors, shards_of, shards_of_cores
from mpocompress.compression.job import CompressionJob
from mpocompress.compression.options import CompressOptions
from mpocompress.parallel import available_cores
from mpocompress.reports.compression import Report
from mpocompress.text import StrPath
from mpocompress.user.model import resolve_model
from mpocompress.user.options import with_keywords


@with_keywords(CompressOptions)
def compress(source: StrPath, target: StrPath, options: CompressOptions) -> Report:
    """Compress a checkpoint file or folder into another one.

    Args:
        source: the checkpoint; for one in shards, its folder or its index.
        target: the output; a name ending in `.safetensors` gives a safetensors file, any other a torch file. If the
            source is a folder, a name without the ending of a file (`.pt`, `.bin` and so on) gives a folder.
        options: the fields of `CompressOptions`.

    Returns:
        The report, which is also in the file.

    Raises:
        CheckpointError: the source cannot be read, or nothing in it can be compressed.
        OutputError: the target cannot be written.
        SelectionError: a glob that matches nothing.
        ModelError: the model cannot be built, or does not fit the checkpoint.
        CalibrationError: the calibration batches cannot be loaded, or the model does not accept them.
        SitesError: an unknown site shape.
        TargetError: a target that no bonds meet, or a value out of range.
        FormatError: the source claims to be compressed, but contradicts itself.
        ReportError: figures that do not add up; this is a bug, and nothing is written.
    """
    output_path, calibration_file = Path(target), options.save_calibration
    if calibration_file is not None:
        check_calibration_file(calibration_file, overwrite=options.overwrite, others=(Path(source), output_path))
    model, notes = resolve_model(options.model) if options.calibration is not None else (options.model, ())
    with open_checkpoint(Path(source), key=options.key, allow_pickle=options.allow_pickle) as checkpoint:
        output = Output.named(target, overwrite=options.overwrite, layout=checkpoint.layout)
        output.check(checkpoint)
        if calibration_file is not None:
            check_calibration_file(
                calibration_file, overwrite=options.overwrite, others=(*checkpoint.files, output_path)
            )
        with Spool(output_path) as spool:
            job = CompressionJob(
                checkpoint=checkpoint,
                spool=spool,
                target=options.truncation.target,
                sites=options.sites,
                selection=options.selection,
                model=model,
                dtype=options.dtype_name,
            )
            calibration = None
            if options.calibration is not None:
                calibration = calibration_for(options.calibration, model, checkpoint, options.progress)
                notes = (*notes, *calibration.notes)
            outcome = compress_matrices(
                job,
                calibration,
                jobs=options.jobs or available_cores(),
                progress=options.progress,
                measure=calibration_file is not None,
            )
            if calibration is not None and calibration_file is not None:
                write_calibration(calibration, calibration_file, overwrite=options.overwrite)
            cores = {
                matrix.report.name: (matrix.report, stored)
                for matrix in outcome.matrices
                if (stored := matrix.stored(spool)) is not None
            }
            tensors = compressed_tensors(checkpoint.tensors, cores, checkpoint.tensor, outcome.biases)
            notes = (*notes, *output.carried_notes(checkpoint))
            report = outcome_report(outcome, target=options.truncation.target, notes=notes)
            size = output.write(
                checkpoint,
                tensors=tensors,
                aliases={name: first for name, first in report.aliases.items() if first in tensors},
                shards=shards_of_cores(report.compressed, shards_of(checkpoint)),
                key="state_dict",
                document=report.to_json(),
            )
    return dataclasses.replace(report, totals=dataclasses.replace(report.totals, file_size_bytes_after=size))

"""Compress every matrix of a checkpoint, with or without calibration data."""

from __future__ import annotations

from mpocompress.calibration.calibration import Calibration
from mpocompress.compression.calibrated import compress_calibrated
from mpocompress.compression.data_free import compress_data_free
from mpocompress.compression.job import CompressionJob, Outcome
from mpocompress.parallel import Progress


def compress_matrices(
    job: CompressionJob,
    calibration: Calibration | None,
    *,
    jobs: int,
    progress: Progress | None,
    measure: bool = False,
) -> Outcome:
    """Compress every matrix of a checkpoint; the cores go to the spool.

    Args:
        job: the compression.
        calibration: the calibration; None to compress by the weights alone.
        jobs: layers or matrices processed at the same time, where no model is run.
        progress: called with the progress of the work.
        measure: whether to measure sensitivities that this target does not need.

    Raises:
        CheckpointError: nothing can be compressed, or the checkpoint is compressed.
        SelectionError: a glob that matches nothing.
        TargetError: a target that no bonds meet.
        OutputError: the disk is full.
    """
    if calibration is None:
        return compress_data_free(job, jobs=jobs, progress=progress)
    return compress_calibrated(job, calibration, measure=measure, jobs=jobs, progress=progress)

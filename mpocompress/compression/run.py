"""One compression, with or without calibration inputs."""

from __future__ import annotations

from mpocompress.calibration.calibration import Calibration
from mpocompress.compression.calibrated import _Work
from mpocompress.compression.data_free import carry_out
from mpocompress.compression.job import Outcome, Task
from mpocompress.jobs import Progress


def work(
    task: Task, calibration: Calibration | None, *, jobs: int, progress: Progress | None, measure: bool = False
) -> Outcome:
    """Decompose every matrix of a checkpoint.

    Args:
        task: what is to be done.
        calibration: what was measured with calibration inputs; None to do without.
        jobs: layers or matrices worked on at the same time, without data.
        progress: told how far the work is.
        measure: whether sensitivities are wanted that this target does not need.

    Returns:
        What came of it.

    Raises:
        CheckpointError: nothing to compress, or compressed already.
        SelectionError: a pattern that matches nothing.
        TargetError: a target that no choice of bonds meets.
        OutputError: cores cannot be put aside.
    """
    if calibration is None:
        surveyed, done = carry_out(task, jobs=jobs, progress=progress)
        return Outcome(surveyed=surveyed, done=done)
    return _Work(task, calibration, measure=measure, jobs=jobs, progress=progress).outcome()

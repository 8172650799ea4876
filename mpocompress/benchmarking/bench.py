"""The `bench` command: times the layers of a compressed file, or the user's whole model, dense against compressed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mpocompress._version import __version__
from mpocompress.benchmarking.comparison import Conditions
from mpocompress.benchmarking.layers import bench_layers
from mpocompress.benchmarking.model import bench_model
from mpocompress.benchmarking.options import BenchOptions
from mpocompress.benchmarking.stored_layers import stored_layers
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.core_tensors import check_cores
from mpocompress.compression.read_report import read_report
from mpocompress.errors import BenchmarkError
from mpocompress.nn.execution import VARIABLE
from mpocompress.parallel import blas_threads
from mpocompress.reports.benchmark import BenchReport, Machine
from mpocompress.text import StrPath, shown
from mpocompress.user.options import with_keywords

CPU_FILE = Path("/proc/cpuinfo")


@with_keywords(BenchOptions)
def bench(source: StrPath, options: BenchOptions) -> BenchReport:
    """Time a compressed file against its dense twin, whose weights are the contracted cores.

    Without a model, every compressed layer runs alone, in float32 and with its own weights; layers of the same kind,
    shapes, sites and bonds are measured once. With a model, the whole model runs.

    Args:
        source: a file or folder that `compress` wrote.
        options: the fields of `BenchOptions`.

    Returns:
        The measurements, all from one run on this machine.

    Raises:
        CheckpointError: the source cannot be read.
        FormatError: not a compressed file, or an inconsistent one.
        ReportError: the totals in its report do not add up.
        BenchmarkError: no compressed layer, invalid sizes, or a device that is not available.
        SelectionError: a pattern matches no compressed layer.
        ModelError: the model cannot be built, or does not match the file.
        InputsError: inputs cannot be made or guessed, or the model does not accept them.
    """
    model, device = options.model, options.device_name
    _check_device(device)
    conditions = Conditions(
        batches=tuple(options.batches),
        lengths=tuple(options.lengths),
        repeats=options.repeats,
        device=device,
        progress=options.progress,
    )
    with open_checkpoint(source) as checkpoint, blas_threads(options.threads), _without_variable():
        report = read_report(checkpoint)
        if not report.compressed:
            raise BenchmarkError(
                where=checkpoint.path.name,
                found="no compressed layer",
                why="the benchmark compares compressed layers with dense ones",
                action="Compress the checkpoint to a smaller target.",
            )
        check_cores(report, checkpoint.tensors, where=checkpoint.path.name)
        stored = stored_layers(report, checkpoint.tensors, where=checkpoint.path.name)
        if model is None:
            measured, notes = bench_layers(stored, options.layers, checkpoint, report, conditions)
        else:
            measured, notes = bench_model(stored, model, options.inputs, checkpoint, conditions)
    return BenchReport(
        tool_version=__version__,
        file=checkpoint.path.name,
        model="" if model is None else shown(model) if isinstance(model, str) else type(model).__name__,
        machine=Machine(
            processor=processor(),
            device="cpu" if device == "cpu" else f"cuda ({torch.cuda.get_device_name()})",
            threads=options.threads,
            torch=torch.__version__,
        ),
        results=measured,
        notes=notes,
    )


@contextmanager
def _without_variable() -> Iterator[None]:
    """Ignore the environment variable of the execution mode in the block, because every mode is measured."""
    value = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[VARIABLE] = value


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            where="device",
            found="cuda, but torch finds no GPU",
            why="the benchmark cannot run on a missing device",
            action="Use cpu, or install a build of torch that supports the GPU.",
        )


def processor() -> str:
    """Return the name of the processor; the machine type if the system does not report the name.

    Example:
        >>> processor() != ""
        True
    """
    models = CPU_FILE.read_text().split("model name")[1:2] if CPU_FILE.exists() else []
    return models[0].partition("\n")[0].strip(" \t:") if models else platform.machine()

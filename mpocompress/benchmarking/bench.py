"""Dense against compressed, side by side: the layers of a compressed file, or the whole model of its user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mpocompress._version import __version__
from mpocompress.benchmarking.comparison import Conditions
from mpocompress.benchmarking.layers import bench_layers
from mpocompress.benchmarking.machine import processor
from mpocompress.benchmarking.model import bench_model
from mpocompress.benchmarking.options import BenchOptions
from mpocompress.benchmarking.stored_layers import stored_layers
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.format import check_cores
from mpocompress.compression.stored_report import stored_report
from mpocompress.errors import BenchmarkError
from mpocompress.jobs import blas_threads
from mpocompress.nn.execution import VARIABLE
from mpocompress.reports.benchmark import BenchReport, Machine
from mpocompress.text import StrPath, shown
from mpocompress.user.options import with_keywords


@with_keywords(BenchOptions)
def bench(source: StrPath, options: BenchOptions) -> BenchReport:
    """Time a compressed file against its dense twin, whose weights are its cores multiplied out.

    Without a model every compressed layer runs alone, in float32 and with its own weights; layers that run alike are
    measured once. With a model the whole of it runs.

    Args:
        source: a file or folder that `compress` wrote.
        options: the fields of `BenchOptions`.

    Returns:
        The figures, all of one run on this machine.

    Raises:
        CheckpointError: the source cannot be read.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
        BenchmarkError: nothing in it is compressed; sizes that mean nothing; a device that is not there.
        SelectionError: a glob that matches no compressed layer.
        ModelError: the model cannot be built, or the file is not of it.
        InputsError: inputs cannot be made or guessed, or the model does not take them.
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
    with open_checkpoint(source) as checkpoint, blas_threads(options.threads), _as_asked():
        report = stored_report(checkpoint)
        if not report.compressed:
            raise BenchmarkError(
                where=checkpoint.path.name,
                found="no compressed layer in it",
                why="there is nothing to compare with a dense one",
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
        measured=measured,
        notes=notes,
    )


@contextmanager
def _as_asked() -> Iterator[None]:
    """Let layers run as they are asked to, whatever the environment says: every way is measured."""
    said = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if said is not None:
            os.environ[VARIABLE] = said


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            where="device",
            found="cuda, and no graphics card that torch can use",
            why="there is nothing to run on",
            action="Give cpu, or install a torch that finds the card.",
        )

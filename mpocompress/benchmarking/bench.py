"""Dense against compressed, side by side: the layers of a compressed file, or the whole model of its user."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike

import torch
from torch import nn

from mpocompress._version import __version__
from mpocompress.benchmarking.comparison import REPEATS, Conditions
from mpocompress.benchmarking.example_inputs import InputsFunction
from mpocompress.benchmarking.layers import bench_layers
from mpocompress.benchmarking.machine import processor
from mpocompress.benchmarking.model import bench_model
from mpocompress.benchmarking.stored_layers import stored_layers
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.format import check_cores
from mpocompress.compression.stored_report import stored_report
from mpocompress.errors import BenchmarkError
from mpocompress.jobs import Progress, blas_threads
from mpocompress.nn.execution import VARIABLE
from mpocompress.reports.benchmark import BenchReport, Machine
from mpocompress.text import shown


def bench(
    source: str | PathLike[str],
    *,
    model: str | nn.Module | None = None,
    inputs: str | InputsFunction | None = None,
    batches: Sequence[int] = (1, 32),
    lengths: Sequence[int] = (100, 1),
    layers: Sequence[str] = (),
    threads: int = 1,
    repeats: int = REPEATS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> BenchReport:
    """Time a compressed file against its dense twin, whose weights are its cores multiplied out.

    Without a model every compressed layer runs alone, in float32 and with its own weights; layers that run alike are
    measured once. With a model the whole of it runs.

    Args:
        source: a file or folder that `compress` wrote.
        model: your own model: a module, or `file.py:name` or `package.module:name` of one or of what builds it, which
            is imported and run.
        inputs: a function of a batch size and a length that gives what the model is called with: a tensor, a tuple of
            arguments or a dict of named ones; or where it is, as for a model. By default guessed from the first layer.
        batches: batch sizes.
        lengths: steps of a sequence; they do not matter to layers without sequences.
        layers: globs of layers or tensors to measure; empty for all.
        threads: threads of torch; the number before is restored.
        repeats: the most samples of every contender; slow ones get fewer, but 3.
        device: `cpu` or `cuda`.
        progress: told how far the work is.

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
    _check(batches=batches, lengths=lengths, threads=(threads,), repeats=(repeats,))
    _check_device(device)
    _check_choices(model, inputs, layers)
    conditions = Conditions(
        batches=tuple(batches), lengths=tuple(lengths), repeats=repeats, device=device, progress=progress
    )
    with open_checkpoint(source) as checkpoint, blas_threads(threads), _as_asked():
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
            measured, notes = bench_layers(stored, layers, checkpoint, report, conditions)
        else:
            measured, notes = bench_model(stored, model, inputs, checkpoint, conditions)
    return BenchReport(
        tool_version=__version__,
        file=checkpoint.path.name,
        model="" if model is None else shown(model) if isinstance(model, str) else type(model).__name__,
        machine=Machine(
            processor=processor(),
            device="cpu" if device == "cpu" else f"cuda ({torch.cuda.get_device_name()})",
            threads=threads,
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


def _check(**numbers: Sequence[int]) -> None:
    """Refuse sizes that mean nothing."""
    for name, values in numbers.items():
        if not values or not all(type(value) is int and value >= 1 for value in values):
            raise BenchmarkError(
                where=name,
                found=f"got {', '.join(map(repr, values)) or 'none'}",
                why="integers of 1 or more are needed",
                action="Give such numbers.",
            )


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise BenchmarkError(
            where="device", found=f"got {device!r}", why="layers run on cpu or cuda", action="Give one of them."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            where="device",
            found="cuda, and no graphics card that torch can use",
            why="there is nothing to run on",
            action="Give cpu, or install a torch that finds the card.",
        )


def _check_choices(model: str | nn.Module | None, inputs: str | InputsFunction | None, layers: Sequence[str]) -> None:
    if model is None and inputs is not None:
        raise BenchmarkError(
            where="inputs",
            found="inputs without a model",
            why="layers alone get random inputs of their own sizes",
            action="Give the model too, or leave the inputs out.",
        )
    if model is not None and layers:
        raise BenchmarkError(
            where="layers",
            found="layers chosen, and a model",
            why="a model is measured as a whole",
            action="Give one of them.",
        )
